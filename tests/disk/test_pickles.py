"""Files of torch.save as traps: small ones that ask for gigabytes, odd tensors, pickles that run something."""

import io
import os
import pickle
import resource
import zipfile

import pytest
import torch

from ldd.disk.pickles import check_dense, load_plain
from ldd.errors import UserError
from ldd.importers import read_pt
from ldd.networks.pretrained import Classifier
from ldd.priors.conversion.reading import read_state

LABELS = torch.tensor([0, 1, 2])


def quantised():
    return torch.quantize_per_tensor(torch.zeros(3, 4), 0.1, 0, torch.qint8)


ODD = {
    "stride 0": lambda: torch.zeros(1).expand(300, 3, 2000, 2000),
    "expanded within": lambda: torch.zeros(4, 1).expand(4, 10**9),
    "overlapping": lambda: torch.zeros(10).as_strided((10**5, 10**5), (0, 0)),
    "sparse": lambda: torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6)),
    "compressed rows": lambda: torch.zeros(3, 3).to_sparse_csr(),
    "quantised": quantised,
    "meta": lambda: torch.empty(10**6, 10**6, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_none_are_refused_by_each_reader(tmp_path, kind, older):
    path = tmp_path / "file.pt"
    try:
        torch.save({"images": ODD[kind](), "labels": LABELS}, path, _use_new_zipfile_serialization=not older)
    except (RuntimeError, NotImplementedError, AttributeError):
        pytest.skip("cannot be saved in this format")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"file\.pt"):
        read_pt(path)
    with pytest.raises(UserError, match=r"file\.pt"):
        read_state(path)
    with pytest.raises(UserError, match=r"file\.pt"):
        Classifier("resnet18", str(path)).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def packed_again(path, method=zipfile.ZIP_DEFLATED, **changes):
    """The file with other compression, and other content of some entries."""
    archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", method) as out:
        for entry in archive.infolist():
            content = archive.read(entry)
            for old, new in changes.get(entry.filename.rpartition("/")[2].partition(".")[0], {}).items():
                assert old in content
                content = content.replace(old, new)
            out.writestr(entry.filename, content)


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = tmp_path / "file.pt"
    torch.save(torch.zeros(30_000_000), path)
    packed_again(path)
    assert path.stat().st_size < 10**6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="a compressed archive"):
        load_plain(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_a_storage_larger_than_its_record(tmp_path):
    path = tmp_path / "file.pt"
    torch.save(torch.zeros(4), path)
    packed_again(path, zipfile.ZIP_STORED, data={b"K\x04": b"M\x00\x40"})
    with pytest.raises(ValueError, match=r"does not match|more than the file has"):
        load_plain(path)


def test_the_bytes_of_all_storages_count(tmp_path):
    with pytest.raises(ValueError, match="take 400 bytes"):
        check_dense([torch.zeros(50), {"a": torch.zeros(50)}], 399)
    whole = torch.zeros(100)
    check_dense([whole, whole[:50], whole.view(10, 10).T], 400)  # one storage
    content = []
    content.append(content)
    check_dense(content, 0)


class Runs:
    def __init__(self, call, *arguments):
        self.made = (call, arguments)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    "content",
    [
        Runs(os.system, "touch /tmp/never"),
        Runs(print, "x"),
        Runs(bytearray, 10**11),
        Runs(torch.Tensor, 10**6, 10**6),
        Runs(torch.Size, (10**9,) * 9),
        {"x": Runs(eval, "1")},
    ],
)
def test_pickles_that_run_or_allocate(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(content, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"file\.pt"):
        read_pt(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_plain_values_come_back(tmp_path):
    content = {"a": [torch.arange(6).view(2, 3).T, 1.5, "x"], "b": {"c": torch.zeros(0)}, 3: None}
    for older in (False, True):
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=not older)
        found = load_plain(tmp_path / "x")
        assert torch.equal(found["a"][0], content["a"][0])
        assert found["a"][1:] == [1.5, "x"]
        assert found["b"]["c"].shape == (0,)


def test_what_is_no_file_of_torch_save(tmp_path):
    (tmp_path / "text").write_text("x" * 100)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("text", "empty", "fifo", "missing", "."):
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            load_plain(tmp_path / name)
