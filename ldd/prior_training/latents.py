"""Latents of training images, encoded once: in memory, or in a file that ranks and runs share."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import ModelMixin
from torch import Tensor

from ldd.augmentation.affine import AffineViews
from ldd.disk.files import write_json
from ldd.disk.parts import WhichPart, Work, make, make_part
from ldd.disk.shards import Shards
from ldd.disk.shared import map_file
from ldd.errors import UserError
from ldd.images import to_unit_range
from ldd.runtime.progress import progress
from ldd.runtime.ranks import rank_zero_info, rank_zero_warn
from ldd.runtime.seeding import generator

if TYPE_CHECKING:
    from ldd.data.real import RealImages

_FORMAT = 1  # of the index and of what `encode_views` draws
CHUNK = 256  # images encoded at once

Encode = Callable[[Tensor], Tensor]
"""Images (n, 3, H, W) in [-1, 1] -> latents (n, c, h, w), float32."""

EncodeSome = Callable[[range], Iterator[Tensor]]
"""Numbers of batches -> their latents, as `encode_views` yields them."""


@dataclass(frozen=True)
class LatentViews:
    """Which latents there are of each training image.

    `number` views, the first of them unaltered, the others altered by `augmentation` as `seed` draws it; with `mirror`
    also the mirror image of each.
    """

    number: int = 1
    augmentation: AffineViews | None = None
    mirror: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.number < 1 or (self.number > 1 and self.augmentation is None):
            raise UserError(
                f"views={self.number} needs an augmentation that makes them differ; set augmentation, or views=1"
            )

    def __len__(self) -> int:
        """Return the number of latents, one for each image."""
        return self.number * (1 + self.mirror)

    def description(self) -> dict[str, object]:
        """Return what the latents depend on besides images and autoencoder."""
        altered = self.augmentation is not None and self.number > 1
        return {
            "number": self.number,
            "mirror": self.mirror,
            "augmentation": asdict(self.augmentation) if self.augmentation is not None and altered else None,
            "seed": self.seed if altered else None,
        }


@torch.no_grad()
def encode_views(
    encode: Encode, real: "RealImages", views: LatentViews, device: torch.device, some: range | None = None
) -> Iterator[Tensor]:
    """Yield latents of all views of all images in batches of up to 256, view-major (a view, then its mirror images).

    `some` are the batches that are wanted, by their numbers; a batch is the same whichever others are. Encoding is not
    autocast, so that latents do not depend on the precision of the training.
    """
    places = torch.arange(len(real.labels)).split(CHUNK)
    batches = [
        (view, mirrored, number)
        for view in range(views.number)
        for mirrored in (False, True)[: 1 + views.mirror]
        for number in range(len(places))
    ]
    if some is not None:
        batches = batches[some.start : some.stop]
    with progress("encoding images", sum(len(places[number]) for *_, number in batches)) as counter:
        for view, mirrored, number in batches:
            images = to_unit_range(real.take(places[number])).to(device)
            if view > 0 and views.augmentation is not None:
                images = views.augmentation(images, generator(views.seed, "view", view, number))
            with torch.autocast(device.type, enabled=False):
                yield encode(images.flip(-1) if mirrored else images).float().cpu()
            counter.add(len(images))


class LatentCache:
    """Latents on disk: `latents-<size>px-<key>.bin`, float32 one after the other, and `.json`, their index.

    The key is a hash of everything the latents depend on: the images (`revision`), the autoencoder's weights and
    config, and the views. Old files may be deleted at any time. The latents are encoded in shards that survive a kill
    (see `ldd.disk.shards`), by ranks together or in parts (see `ldd.disk.parts`); the index is written last.
    """

    def __init__(
        self,
        folder: Path,
        revision: str,
        autoencoder: str,
        views: LatentViews,
        shape: tuple[int, ...],  # (M, c, h, w) of all latents together
        image_size: int,
    ) -> None:
        facts = [_FORMAT, revision, autoencoder, views.description(), list(shape)]
        self.key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.data = folder / f"latents-{image_size}px-{self.key[:16]}.bin"
        self.index = self.data.with_suffix(".json")
        self._shape, self._size = shape, torch.Size(shape).numel()
        self._batches = len(views) * -(-shape[0] // len(views) // CHUNK)

    def load(self, encode: EncodeSome) -> Tensor:
        """Return the latents, mapped into memory; where there is no file yet, first write what `encode` gives."""
        found = self._open()
        return make(self._work(encode)) if found is None else found

    def load_part(self, encode: EncodeSome, part: WhichPart) -> Tensor | None:
        """Write a part of the latents; return all of them if all others are there."""
        return make_part(self._work(encode), part)

    def _work(self, encode: EncodeSome) -> Work[Tensor]:
        return Work(
            self.data,
            self.key,
            self._batches,
            done=len,
            add=lambda shards, some: self._add(shards, some, encode),
            finish=self._finish,
            find=self._open,
            contents=f"{self._shape[0]} latents",
            num_bytes=self._size * torch.float32.itemsize,
            argument="model.cache_dir",
        )

    def remove(self) -> None:
        """Delete the file; tensors that are mapped from it stay whole."""
        for path in (self.index, self.data):
            path.unlink(missing_ok=True)

    def _open(self) -> Tensor | None:
        if not self.index.is_file():
            return None
        try:
            if json.loads(self.index.read_text(encoding="utf-8"))["key"] != self.key:
                raise ValueError("another index")
            return map_file(self.data, self._size, torch.float32).view(self._shape)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            rank_zero_warn(f"the cache {self.data} is damaged ({error}); it is built again")
            return None

    def _add(self, shards: Shards, some: range, encode: EncodeSome) -> None:
        there = f"; {sum(shards.facts)} of them are there" if shards.facts else ""
        if some:
            rank_zero_info(f"encoding {self._shape[0]} latents into {self.data}{there}")
        for latents in encode(some):
            shards.add([latents.contiguous().numpy().data], len(latents))

    def _finish(self, shards: Shards) -> None:
        shards.finish()
        write_json(self.index, {"format": _FORMAT, "key": self.key, "shape": list(self._shape)})


def fingerprint(autoencoder: ModelMixin) -> str:
    """Return a hash of an autoencoder's class, config and weights, 64 hex digits."""
    config = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(
        json.dumps([type(autoencoder).__name__, config], sort_keys=True, default=str).encode()
    )
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
