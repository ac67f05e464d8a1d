"""The benchmark that says what a protocol can tell: its figures from rows that are known."""

import statistics

from benchmarks.instrument import figures_of
from ldd.evaluation import Report
from ldd.evaluation.results.rows import Row


def row(name, network, repeat, accuracy, seconds=2.0):
    return Row(0, name, network, True, repeat, 0, accuracy, seconds, "p", None, None)


def test_the_error_of_a_difference_is_that_of_two_means():
    """Draws of mean 30, 40 and 50 % over two networks: deviation 10 points, and 10 sqrt(2 / n) for n seeds each.

    Three students of one draw of mean 31, 32 and 33 %: 1 point.
    """
    rows = [
        row("random_real", network, repeat, mean + shift, seconds)
        for repeat, mean in enumerate((0.3, 0.4, 0.5))
        for network, shift, seconds in (("A", 0.1, 2.0), ("B", -0.1, 4.0))
    ]
    rows += [
        row("distilled", network, repeat, 0.31 + 0.01 * repeat) for repeat in range(3) for network in "AB"
    ]
    rows += [row("full_real", "A", 0, 0.8), row("full_real", "B", 0, 0.6)]
    found = figures_of(Report(tuple(rows), {"p": "hash"}, {}), 1)
    assert round(found["full, A, %"], 9) == 80
    assert (found["1 a class: student, A, s"], found["1 a class: student, B, s"]) == (2.0, 4.0)
    assert round(found["1 a class: random real, %"], 9) == 40
    assert abs(found["1 a class: deviation of students of one draw, points"] - 1) < 1e-9
    deviation = statistics.stdev((30, 40, 50))
    for seeds in (3, 5, 10):
        error = (deviation**2 / seeds + deviation**2 / seeds) ** 0.5
        assert abs(found[f"1 a class: error of a difference, {seeds} seeds"] - error) < 1e-9
