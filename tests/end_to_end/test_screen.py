"""What a run shows on terminals of three widths, and in a pipe."""

import re

import pytest
from processes import Started, latentdd
from small_runs import ROOT, small_arguments
from small_world import protocol_file
from terminal import on_terminal


@pytest.fixture
def arguments(tiny_prior_path, tmp_path):
    """A run of four steps with an evaluation of two sets, two networks and three repeats."""
    networks = (
        "{narrow: {class_path: ldd.networks.ConvNet, init_args: {width: 4, depth: 2}}, "
        "vit: {class_path: ldd.networks.ViT, init_args: {patch_size: 16, dim: 8, depth: 1, heads: 2}}}"
    )
    return [
        "fit",
        *small_arguments(tiny_prior_path)[:-4],  # with evaluation
        *("--trainer.max_steps", 4, "--preview.every_n_steps", 0),
        *("--trainer.default_root_dir", tmp_path / "run", "--evaluation.protocol", protocol_file(tmp_path)),
        *("--evaluation.networks", networks, "--evaluation.initial", "false"),
        *("--evaluation.baselines", "[{class_path: ldd.evaluation.RandomReal}]"),
    ]


@pytest.mark.parametrize(("width", "workers"), [(80, 0), (100, 1), (200, 2)])
def test_a_run_on_a_terminal(arguments, width, workers):
    screen = on_terminal(width, [*arguments, "--evaluation.num_workers", workers], ROOT)
    assert screen.code == 0, screen.shown
    for work, total in (("training", 4), ("evaluating", 12)):
        seen = [int(done) for done in re.findall(rf"{work}\s[^\n\r]*? (\d+)/{total} ", screen.shown)]
        assert seen == sorted(seen)
        assert {0, total} < set(seen), work  # it moves
    assert re.search(r"\d+/12 .*\d s left (narrow|vit) on (distilled|random_real): \d+\.\d %", screen.shown)
    assert re.search(r"\d/4 .* loss [\d.]+", screen.shown)
    drawn = [line for line in screen.lines if re.match(r"[┏┃┡│└ ]|training |evaluating ", line)]
    assert max(map(len, drawn)) <= width
    unwanted = [line for line in screen.lines if re.search("Epoch|v_num|it/s|Tip|FLOPs|[Ww]arning|…", line)]
    assert unwanted == []
    assert len([line for line in screen.lines if line.startswith("training: 4 steps in")]) == 1


def test_a_run_in_a_pipe(arguments, tmp_path):
    log = tmp_path / "log"
    assert Started(latentdd, [*arguments, "--evaluation.num_workers", 1], log).result() == 0
    said = log.read_text()
    assert re.search(r"^training: 4 steps in \d+ s, loss [\d.]+$", said, re.MULTILINE)
    assert re.search(r"^evaluating: 12 networks in \d+ s$", said, re.MULTILINE)
    assert not re.search("Epoch|v_num|it/s|Tip|FLOPs|[Ww]arning|…|\x1b|\r", said)
