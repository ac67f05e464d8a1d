"""The data of a run: source -> subset -> cache -> prune -> class-balanced batches of bytes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ldd.data import folders as folders  # its source may be named without its module
from ldd.data.fingerprints import FORMAT, content_hashes, differences, fingerprint, short_hashes
from ldd.data.pruning import Pruner, ScoreTable
from ldd.data.real import RealImages
from ldd.data.sources import DigitsSource, Item, Source, SourceFactory, Split
from ldd.data.splits import CacheEntry, OnError, load_split, pixels_key
from ldd.data.subsets import Subset
from ldd.disk.parts import NthPart, WhichPart
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec
from ldd.runtime import ledger
from ldd.runtime.ranks import this_rank

_ENDLESS = 2**31  # steps of an epoch where the trainer names no number


class DistillationData(LightningDataModule):
    """Real images in three splits, with the core-set that pruning leaves of the training one.

    Only `train_images` and `core_set` may be learned from; `selection_images` serve to choose settings and
    `test_images` to report. Models draw their own batches, by step, from these; the loaders only count steps.

    Args:
        source: class the images come from; it is called with `root`.
        root: folder of the data; null for the digits.
        subset: the name of a published ImageNet subset (imagenette, birds, a...), the path of a text file of wnids,
            or a list of classes by wnid or name (text) or id (number), in the order of their new labels; null for
            all.
        image_size: height and width in pixels; the short side is resized to it (bilinear, antialiased, on
            bytes) and the centre is cropped.
        pruner: what it leaves of the training split is the core-set; null keeps all of it. It sees the files as
            they are, before any resizing to `image_size`.
        cache_dir: folder for decoded images, shared by ranks and runs and mapped into memory; null decodes into
            memory each time.
        on_error: raise ends the run at the first unreadable image; skip leaves such images out and names them.
        seed: of the pruner's random choices; the splits never depend on it.
        mean: per channel, for images in [0, 1]; the default is ImageNet's.
        std: per channel, for images in [0, 1]; the default is ImageNet's.

    Attributes:
        classes: the K classes, ordered by label.
        cache_dir: folder of decoded images, shared by runs; null keeps none.
        source: where the images come from, restricted to the subset.
        spec: what models take from the data; here, as the two above, right after construction.
        train_images, core_set, selection_images, test_images: here after `setup`.
        prune_table: the pruner's scores of `train_images` and what it kept, after `setup`; None without a pruner.
        pruning_cost: what scoring them took (see `ldd.runtime.ledger`); None without a pruner.

    Raises:
        UserError: root, subset or image_size cannot be used.
    """

    train_images: RealImages
    core_set: RealImages
    selection_images: RealImages
    test_images: RealImages
    prune_table: ScoreTable | None

    def __init__(
        self,
        source: SourceFactory = DigitsSource,
        root: str | None = None,
        subset: str | Sequence[str | int] | None = None,
        image_size: int = 32,
        pruner: Pruner | None = None,
        cache_dir: str | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if image_size < 1:
            raise UserError(f"image_size={image_size} is not a size; use a number of pixels such as 32")
        if not all(0 < value < float("inf") for value in std):
            raise UserError(f"std={list(std)} must be above 0 in each channel")
        if not all(map(isfinite, mean)):
            raise UserError(f"mean={list(mean)} must be a number in each channel")
        whole = source(root)
        self.source: Source = whole if subset is None else Subset(whole, subset)
        self._pruner = pruner
        self.cache_dir = cache_dir
        self.on_error: OnError = on_error
        self.seed = seed
        self._splits: dict[Split, RealImages] = {}
        self._fingerprints: dict[str, str] = {}
        self._contents: dict[str, Tensor] = {}
        self._listed: dict[Split, int] = {}
        self._ready = False
        self.pruning_cost: dict[str, float] | None = None
        self.classes: list[ClassInfo] = self.source.classes
        self.spec = DataSpec(
            classes=self.classes,
            image_size=image_size,
            mean=tuple(mean),
            std=tuple(std),
            fingerprint=self.source.fingerprint("test"),
            licence=self.source.licence,
        )

    def prepare_data(self) -> None:
        """Build the cache; Lightning calls this in one process of each machine.

        Several ranks build it together in `setup`, which all of them call.

        Raises:
            UserError: as `setup`.
        """
        if self.cache_dir is not None and this_rank()[1] == 1:
            for split in get_args(Split):
                self._load(split)

    def prepare(self, part: WhichPart | None = None) -> list[Path]:
        """Decode all splits into `cache_dir` and hash their files, so that runs start at once; or do a part of that.

        The last of the parts, on whatever machine, leaves the files of a single process.

        Args:
            part: of each split (see `ldd.disk.parts`); None for all.

        Returns:
            The caches; none while other parts of any are missing, which are printed.

        Raises:
            UserError: as `setup`; no `cache_dir`; parts that do not fit together.
        """
        if self.cache_dir is None:
            raise UserError("data.cache_dir (null) must name the folder that images are decoded into")
        whole = list[Path]()
        for split in get_args(Split):
            items, folder = self.source.items(split), Path(self.cache_dir).expanduser()
            if part is None:
                self._load(split)
            entry = CacheEntry(folder, self.source, split, items, self.spec.image_size)
            if part is None or entry.build_part(part, self.on_error) is not None:
                whole.append(entry.data)
            if isinstance(part, NthPart) and not self.source.in_memory:
                mine = part.units(len(items))
                content_hashes(self.source, items[mine.start : mine.stop], skip=self.on_error == "skip")
        if part is None:
            self.fingerprints_of(*get_args(Split))
        return whole if len(whole) == len(get_args(Split)) else []

    def setup(self, stage: str | None = None) -> None:
        """Decode the three splits, or map them, and prune; a second call does nothing.

        Called by a trainer (with a `stage`) it also finds the `fingerprints`, which its checkpoints keep, on all ranks.

        Raises:
            UserError: an unreadable image, a class without images, or too little memory or disk.
        """
        if not self._ready:
            self._setup()
        if stage is not None:
            self.fingerprints  # noqa: B018 - kept

    def _setup(self) -> None:
        self.train_images = self._load("train")
        self.selection_images = self._load("selection")
        self.test_images = self._load("test")
        self.core_set, self.prune_table = self.train_images, None
        if self._pruner is not None:
            items = _items_of(self.train_images)  # not what the source lists: these can be read
            started, self._pruner.decoded_in = time.perf_counter(), self.cache_dir
            self.prune_table = self._pruner.prune(self.source, items, self.spec, self.seed)
            seconds = time.perf_counter() - started
            self.pruning_cost = {**ledger.measured(seconds), "images": len(self.train_images)}
            kept = self.prune_table.kept
            assert kept is not None
            self.core_set = self.train_images.select(kept)
        self.train_images.explain = self.core_set.explain = self._explain
        self.train_images.spec = self.core_set.spec = self.spec
        self.core_set.fingerprint = lambda: self.fingerprints["core_set"]
        self._ready = True

    def readable(self, split: Split) -> list[Item]:
        """Return the images of a split that can be read, without reading them: all that share work agree on them.

        Raises:
            UserError: unreadable ones are to be skipped, and no cache tells which.
        """
        items = self.source.items(split)
        if self.on_error == "raise":
            return list(items)
        if self.cache_dir is not None:
            folder, size = Path(self.cache_dir).expanduser(), self.spec.image_size
            if (found := CacheEntry(folder, self.source, split, items, size).open("skip")) is not None:
                return _items_of(found)
        raise UserError(
            "data.on_error (skip): parts have to agree on the images that can be read; decode them first by `latentdd "
            "prepare`, with the same --data.cache_dir and --data.image_size"
        )

    @property
    def prunes(self) -> bool:
        """Whether a pruner chooses the core-set."""
        return self._pruner is not None

    def fingerprints_of(self, *splits: Split) -> dict[str, str]:
        """Return the fingerprints of splits by contents, as the source lists them; `format` is theirs.

        Every file is read once on this machine; ranks share the work, so all of them must call it.
        """
        for split in splits:
            if split not in self._fingerprints:
                items = self.source.items(split)
                self._read_contents(split, items, skip=self.on_error == "skip")
                self._listed[split] = len(items)
        return {"format": FORMAT, **{split: self._fingerprints[split] for split in splits}}

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The fingerprints of all splits and, after `setup`, of the core-set (see `ldd.data.fingerprints`)."""
        found = self.fingerprints_of(*get_args(Split))
        if not self._ready:
            return found
        if "core_set" not in self._fingerprints:
            if len(self.core_set) == self._listed["train"]:  # all that is listed: the same images
                self._contents["core_set"] = self._contents["train"]
                self._fingerprints["core_set"] = found["train"]
            else:
                self._read_contents("core_set", _items_of(self.core_set))
        return {**found, "core_set": self._fingerprints["core_set"]}

    def contents_of(self, split: Split | Literal["core_set"]) -> Tensor:
        """Return which images a split holds, (n,) int64 ascending, see `ldd.data.fingerprints.short_hashes`.

        All ranks must call it, unless they have asked for the fingerprints.
        """
        if split not in self._contents:
            self.fingerprints if split == "core_set" else self.fingerprints_of(split)
        return self._contents[split]

    def _read_contents(self, split: str, items: Sequence[Item], *, skip: bool = False) -> None:
        hashes = content_hashes(self.source, items, skip=skip)
        self._contents[split] = short_hashes(hashes)
        self._fingerprints[split] = fingerprint(items, hashes)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data: which images they are."""
        return {"fingerprints": dict(self.fingerprints)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise if a checkpoint's run has learned from other images.

        Raises:
            UserError: names the splits that differ, with both fingerprints.
        """
        if changed := differences(state_dict.get("fingerprints"), self.fingerprints):
            raise UserError(
                f"ckpt_path: the run was started with other images in {self.source.place} ({'; '.join(changed)}); "
                "restore them, or start another run"
            )

    def core_set_key(self) -> str:
        """Return the `pixels_key` of the core-set, by which caches tell whether they were computed from it.

        Call it after `setup`.
        """
        return pixels_key(self.source, _items_of(self.core_set), self.spec.image_size)

    def pruning_record(self) -> dict[str, Any] | None:
        """Return what pruning did, as plain values; None without it."""
        if self._pruner is None or self.prune_table is None:
            return None
        return {
            "pruner": type(self._pruner).__name__,
            **asdict(self.prune_table.facts),
            "data_fingerprint": self.prune_table.fingerprint,
            "images_per_class": self.train_images.counts,
            "kept_per_class": self.core_set.counts,
        }

    def train_dataloader(self) -> DataLoader[int]:
        """Return step numbers: one epoch is the whole run, so that validation comes at its end."""
        steps = self.trainer.max_steps if self.trainer is not None else -1
        return DataLoader(range(_ENDLESS if steps < 0 else max(1, steps)), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[int]:
        """Return one item, so that Lightning validates once."""
        return DataLoader(range(1), batch_size=None)  # type: ignore[arg-type]

    def _explain(self, label: int, needed: int) -> str:
        """Name a class that cannot give `needed` images, and what to do."""
        name, whole = f"class {self.classes[label].wnid!r}", self.train_images.counts[label]
        if self._pruner is None or self.prune_table is None or needed > whole:
            return f"{name}; lower it, or add images"
        keep = self._pruner.smallest_keep(self.prune_table, needed)
        cure = "prune less" if keep is None else f"use at least keep={keep:g}"
        return f"{name} after pruning (of {whole}); lower it, or {cure}"

    def _load(self, split: Split) -> RealImages:
        if split not in self._splits:
            size, cache_dir, on_error = self.spec.image_size, self.cache_dir, self.on_error
            self._splits[split] = load_split(self.source, split, size, cache_dir, on_error)
        return self._splits[split]


def _items_of(images: RealImages) -> list[Item]:
    return list(map(Item, images.keys, images.labels.tolist()))
