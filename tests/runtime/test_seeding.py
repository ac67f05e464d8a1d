"""Draws follow from their key alone."""

import pytest
import torch

from ldd.runtime.seeding import derive_seed, generator, normal_rows, philox, seeded


def test_keys_decide_and_differ():
    keys = [(), ("real",), ("real", 0), ("real", 1), ("real", 0, 0), ("real", "0"), ("noise", 0)]
    seeds = [derive_seed(seed, *key) for seed in (0, 1) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    first, again = (torch.randn(3, generator=generator(7, "real", 3)) for _ in range(2))
    assert torch.equal(first, again)


def test_known_value():
    # Runs of one version must be repeatable by the next: a change of this number breaks every seed.
    assert derive_seed(0, "real", 0, 1) == 8001122520930290979


def test_seeded_restores_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(0, "network", 5):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(0, "network", 5):
        assert torch.equal(torch.rand(2), inside)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_has_the_published_words(counter, key, words):
    """The known answers that its authors give with their code (Random123)."""

    def numbers(text):
        return [int(word, 16) for word in text.split()]

    found = philox([torch.tensor([word, 7]) for word in numbers(counter)], tuple(numbers(key)))
    assert [int(word[0]) for word in found] == numbers(words)


def test_normal_rows_follow_from_state_and_row_alone():
    rows = torch.tensor([5, 0, 2**40, 2])
    whole = normal_rows(rows, 18, generator(3))
    assert whole.dtype == torch.float32
    for i, row in enumerate(rows):
        assert torch.equal(normal_rows(row[None], 18, generator(3))[0], whole[i])
    assert torch.equal(normal_rows(rows, 7, generator(3)), whole[:, :7])
    again = generator(3)
    first, second = normal_rows(rows, 18, again), normal_rows(rows, 18, again)
    assert torch.equal(first, whole)
    assert not torch.isclose(first, second).any()
    assert len(whole.unique()) == whole.numel()


def test_normal_rows_are_standard_normal_and_independent():
    """Of 400,000 numbers: moments, the tails, neighbours in a row and between rows, draws of two states."""
    drawn = normal_rows(torch.arange(20_000), 20, generator(0)).double()
    other = normal_rows(torch.arange(20_000), 20, generator(1)).double()
    error = drawn.numel() ** -0.5
    assert abs(drawn.mean()) < 4 * error
    assert abs(drawn.square().mean() - 1) < 4 * 2**0.5 * error
    assert abs((drawn**4).mean() - 3) < 4 * 96**0.5 * error
    for bound in (1.0, 2.0, 3.0):
        share = 1 - torch.erf(torch.tensor(bound / 2**0.5)).double()
        assert abs((drawn.abs() > bound).double().mean() - share) < 4 * (share * (1 - share)).sqrt() * error
    for a, b in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1]), (drawn, other)):
        assert abs((a * b).mean()) < 4 * error
        assert abs((a.square() * b.square()).mean() - 1) < 4 * 8**0.5 * error
