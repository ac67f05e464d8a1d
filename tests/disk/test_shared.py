"""Files that processes share: parts of a mapped one are told apart from all other tensors."""

import torch

from ldd.disk.shared import MappedPart, map_file


def test_views_of_a_mapped_file_are_found_again(tmp_path):
    numbers = torch.arange(240, dtype=torch.int64)
    (tmp_path / "x.bin").write_bytes(numbers.numpy().tobytes())
    whole = map_file(tmp_path / "x.bin", 240, torch.int64)
    for view in (whole, whole[7:], whole.view(10, 24)[2:9:3], whole.view(10, 24).T[5]):
        part = MappedPart.of(view)
        assert part is not None
        assert part.open().equal(view)
    assert MappedPart.of(whole.clone()) is None
    assert MappedPart.of(numbers) is None


def test_memory_that_was_a_mapped_file_before_is_not_one(tmp_path):
    size = 2**16
    (tmp_path / "x.bin").write_bytes(bytes(size))
    for _ in range(20):
        address = map_file(tmp_path / "x.bin", size, torch.uint8).data_ptr()  # and unmapped at once
        others = [torch.zeros(size, dtype=torch.uint8) for _ in range(4)]
        assert all(MappedPart.of(other) is None for other in others)
        if any(other.data_ptr() == address for other in others):
            break


def test_a_file_that_was_replaced_is_not_mapped_again(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    whole = map_file(path, 3, torch.uint8)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(path)
    assert MappedPart.of(whole) is None
    path.unlink()
    assert MappedPart.of(whole) is None
    assert bytes(whole) == b"old"
