"""Plans from measured bytes; what autograd saves, counted."""

import pytest
import torch

from ldd.errors import UserError
from ldd.memory import MemoryPlan, check_chunk_size, make_plan, peak_memory_mib, saved_bytes


@pytest.mark.parametrize(
    ("chunk_size", "checkpointing", "free", "expected"),
    [
        ("auto", "auto", 2000, MemoryPlan(10, False)),  # 10 images of 100 bytes fill half of the memory
        ("auto", "auto", 1999, MemoryPlan(9, True)),
        ("auto", "never", 600, MemoryPlan(3, False)),
        ("auto", "always", 4000, MemoryPlan(10, True)),
        ("auto", "auto", 10, MemoryPlan(1, True)),
        (4, "auto", 10, MemoryPlan(4, True)),  # a number is honoured
        (4, "auto", 4000, MemoryPlan(4, False)),
    ],
)
def test_plan(chunk_size, checkpointing, free, expected):
    assert make_plan(chunk_size, checkpointing, num_images=10, bytes_per_image=100, free=free) == expected


def test_saved_bytes_counts_each_storage_once_and_no_parameters():
    weight = torch.nn.Parameter(torch.randn(5, 3))
    x = torch.randn(4, 3, requires_grad=True)
    # sin saves its input (48 bytes); the product saves x.sin() (48) and the weight, which exists anyway.
    assert saved_bytes(lambda: x.sin() @ weight.t(), [weight]) == 96
    # Two uses of the same tensor are one storage.
    assert saved_bytes(lambda: x.sin() + x.cos(), []) == 48


def test_chunk_size_is_checked():
    check_chunk_size("auto")
    with pytest.raises(UserError, match=r"chunk_size \(-1\)"):
        check_chunk_size(-1)


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mib(torch.device("cpu"))
    held = torch.ones(int(before + 100) * 2**18)  # 4 bytes each
    assert peak_memory_mib(torch.device("cpu")) > before + 50
    assert held.sum() > 0
