"""Soft labels come back from disk as they were, in as many bytes as are said."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_set import classes_of, random_images

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount
from ldd.artefact.soft_labels import amount_of_one, quantise, restored, stored
from ldd.disk.files import read_tensors
from ldd.errors import UserError


def probabilities(n=6, k=5, seed=0, sharpness=3.0):
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return (sharpness * logits).softmax(1)


def labelled(soft_labels, top_k=None):
    return DistilledSet.from_images(
        random_images(3),
        torch.arange(3),
        classes_of(["a", "b", "c"]),
        soft_labels=soft_labels,
        label_top_k=top_k,
    )


def test_all_of_them():
    soft = probabilities()
    assert torch.equal(quantise(soft, precision="float32"), soft)
    half = quantise(soft)
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), soft, atol=5e-4, rtol=0)  # half of 2^-10, the spacing below 1
    assert stored(half)["soft_labels"].nbytes == 6 * 5 * 2


def test_largest_by_a_loop():
    """The largest two in half precision, and what is left of 1 in equal parts, written out row by row."""
    soft = probabilities()
    cut = quantise(soft, top_k=2)
    for row, expected in zip(cut, soft, strict=True):
        order = expected.argsort(descending=True).tolist()
        kept = [float(expected[i].half()) for i in order[:2]]
        assert [float(row[i]) for i in order[:2]] == kept
        for i in order[2:]:
            assert float(row[i]) == pytest.approx((1 - sum(kept)) / 3, abs=1e-7)
    assert torch.allclose(cut.sum(1), torch.ones(6), atol=1e-6, rtol=0)
    assert quantise(soft, top_k=5, precision="float32").equal(soft)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 7),
    top=st.integers(1, 7),
    sharpness=st.sampled_from([0.0, 1e-4, 1.0, 300.0]),
    precision=st.sampled_from(["int8", "float16", "float32"]),
    seed=st.integers(0, 5),
)
def test_storage_loses_nothing(k, top, sharpness, precision, seed):
    top = min(top, k)
    cut = quantise(probabilities(4, k, seed, sharpness), top, precision)
    tensors = stored(cut, top)
    assert torch.equal(restored(tensors, k), cut)
    assert tensors["soft_label_values"].shape == tensors["soft_label_indices"].shape == (4, top)
    assert ((cut >= 0) & (cut <= 1)).all()


def test_eight_bits_by_a_loop():
    """Whole 255ths that sum to 1, each within one of them, and none farther than rounding needs."""
    soft = probabilities(8, 9)
    cut = quantise(soft, precision="int8")
    for row, exact in zip(cut, soft, strict=True):
        codes = [round(255 * float(p)) for p in row]
        assert sum(codes) == 255
        assert all(abs(c - 255 * float(p)) < 1 for c, p in zip(codes, exact, strict=True))
        order = sorted(range(9), key=lambda i: 255 * float(exact[i]) % 1)
        rounded_up = [255 * float(exact[i]) < codes[i] for i in order]
        assert rounded_up == sorted(rounded_up), "up where most was lost"
    assert torch.equal(restored(stored(cut), 9), cut)
    assert stored(cut)["soft_labels"].dtype == torch.uint8
    largest = stored(quantise(soft, 3, "int8"), 3)
    assert largest["soft_label_values"].dtype == torch.uint8


def test_amounts_are_what_is_stored():
    soft = probabilities(1, 9)
    for top_k in (None, 1, 4):
        for precision in ("int8", "float16", "float32"):
            tensors = stored(quantise(soft, top_k, precision), top_k)
            said = amount_of_one(9, top_k, precision)
            assert said == Amount.of(tensors.values())
            assert said.floats == (9 if top_k is None else top_k)


def test_eight_bits_on_disk(tmp_path):
    cut = quantise(probabilities(3, 3), precision="int8")
    loaded = DistilledSet.load(labelled(cut).save(tmp_path / "set"))
    assert torch.equal(loaded.soft_labels, cut)
    assert loaded.bytes["labels"] == 3 * (8 + 3)
    assert loaded.storage.labels.floats == 9


def test_bytes_on_disk(tmp_path):
    cut = quantise(probabilities(3, 3), top_k=1)
    distilled = labelled(cut, 1)
    loaded = DistilledSet.load(distilled.save(tmp_path / "set"))
    assert torch.equal(loaded.soft_labels, cut)
    assert loaded.label_top_k == 1
    on_disk = read_tensors(tmp_path / "set" / "images.safetensors")
    assert on_disk["soft_label_values"].dtype == torch.float16
    assert on_disk["soft_label_indices"].dtype == torch.int16
    assert loaded.bytes["labels"] == 3 * (8 + 2 + 2)
    assert loaded.storage.labels.floats == 3, "an index is no number"
    again = loaded.save(tmp_path / "again")
    assert (again / "images.safetensors").read_bytes() == (
        tmp_path / "set" / "images.safetensors"
    ).read_bytes()


def test_many_classes_need_wider_indices():
    wide = torch.full((1, 40_000), 1 / 40_000)
    assert stored(quantise(wide, 3), 3)["soft_label_indices"].dtype == torch.int32


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"labels.top_k \(6\) must lie in 1..5"):
        quantise(probabilities(), top_k=6)
    with pytest.raises(UserError, match="more than the largest 1 probabilities of each row"):
        labelled(probabilities(3, 3), 1)
    values, indices = torch.full((3, 1), 0.5), torch.tensor([[0], [1], [3]])
    with pytest.raises(UserError, match="do not fit 3 classes"):
        restored({"soft_label_values": values, "soft_label_indices": indices}, 3)
    with pytest.raises(UserError, match="soft_label_values do not make soft labels"):
        restored({"soft_label_values": values}, 3)
    assert restored({"images": values}, 3) is None
