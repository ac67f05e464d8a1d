"""Storage: D3's published settings on ImageNet-1K, and every part and form of an artefact."""

import pytest
import torch
from tiny_set import full_set, tiny_set

from ldd.artefact.size import Amount, Storage

META = torch.device("meta")
# Notes on the released code (shared/research/d3.md, tables A3, A7 and C): sub-tasks, parameters of one decoder,
# d of a latent, components per class -> IPC-equivalents with and without labels, all floats.
RELEASED = {
    1: (5, 789_187, 64, 1, 0.41, 0.33, 5_073_935),
    2: (2, 5_774_691, 2048, 2, 1.77, 1.61, 21_741_382),
    10: (5, 6_308_547, 4096, 10, 10.05, 9.23, 123_462_735),
}


def released(subtasks, parameters, width, components):
    """1,000 classes at 64 px: K decoders, means and log-variances, a soft label for each component; all float32."""
    n = 1000 * components
    return Storage.of(
        1000,
        64,
        codes={name: torch.empty(n, width, device=META) for name in ("latents", "log_variance")},
        decoder={str(k): torch.empty(parameters, device=META) for k in range(subtasks)},
        labels=[torch.empty(n, 1000, device=META), torch.empty(n, dtype=torch.int64, device=META)],
        form="codes",
    )


@pytest.mark.parametrize("budget", RELEASED)
def test_released_settings(budget):
    *setting, with_labels, without_labels, floats = RELEASED[budget]
    storage = released(*setting)
    assert storage.total() == Amount(floats, 4 * floats + 8000 * setting[-1])
    assert round(storage.images_per_class(storage.total()), 2) == with_labels
    assert round(storage.images_per_class(storage.total(labels=False)), 2) == without_labels
    figures = storage.to_dict()
    assert round(figures["ipc_equivalents"], 2) == with_labels
    assert round(figures["ipc_equivalents_without_labels"], 2) == without_labels
    assert figures["ipc_equivalents_with_generator"] is None, "nobody said what generator the codes need"


def test_generator_is_charged_to_codes_alone():
    storage = released(*RELEASED[1][:4])
    assert storage.forms == ("codes",)
    with_generator = Storage(
        1000, 64, codes=storage.codes, images=Amount(12, 12), generator=Amount(12_288_000, 24_576_000)
    )
    assert with_generator.total(generator=True) == Amount(12, 12), "images need no generator"
    charged = with_generator.total(generator=True, form="codes")
    assert charged == Amount(128_000 + 12_288_000, 4 * 128_000 + 24_576_000)
    assert with_generator.forms == ("images", "codes")
    codes = with_generator.to_dict()["forms"]["codes"]
    assert codes["ipc_equivalents_with_generator"] == pytest.approx(1 + 128 / 12_288, abs=1e-12)
    assert codes["ipc_equivalents"] == pytest.approx(128 / 12_288, abs=1e-12)


def test_of_an_artefact(tmp_path):
    """6 images of 3 x 8 x 8 for 3 classes; 6 x 3 halves and 6 weights; 96 floats of codes; 25 of a decoder."""
    storage = full_set().storage
    assert storage.form == "images"
    assert storage.images == Amount(1152, 1152)
    assert storage.labels == Amount(18 + 6, 48 + 36 + 24)
    assert storage.codes == Amount(96, 384 + 48)
    assert storage.decoder == Amount(25, 50)
    assert storage.generator is None
    assert storage.images_per_class(storage.total(labels=False)) == 2.0
    assert storage.to_dict()["ipc_equivalents_in_bytes"] == pytest.approx((1152 + 108) / 576, abs=1e-12)
    assert sum(full_set().bytes.values()) == sum(
        getattr(storage, part).bytes for part in ("images", "labels", "codes", "decoder")
    )


def test_a_distribution_is_stored_as_codes():
    codes = {"latents": torch.zeros(6, 4), "log_variance": torch.zeros(6, 4)}
    prior = {
        "class_path": "ldd.priors.PixelPrior",
        "image_size": 8,
        "floats": 7,
        "bytes": 28,
        "sha256": "0" * 64,
    }
    distilled = tiny_set(codes=codes, prior=prior)
    assert distilled.is_distribution
    assert not full_set().is_distribution
    storage = distilled.storage
    assert (storage.form, storage.generator) == ("codes", Amount(7, 28))
    assert storage.total(generator=True) == Amount(48 + 7, 192 + 48 + 28)
