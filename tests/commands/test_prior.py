"""`latentdd prior`: its actions as users call them, in-process."""

import json

import pytest
import torch
import yaml
from original_ldm import build, checkpoint_of, config_of, randomise
from PIL import Image

from ldd import cli
from ldd.classes import ClassInfo, to_bytes
from ldd.commands import prior
from ldd.commands.prior_convert import imagenet_classes, read_class_names
from ldd.commands.prior_sample import choose_classes
from ldd.errors import UserError
from ldd.preview import draw_grid
from ldd.priors import LatentDiffusionPrior
from ldd.seeding import generator

NAMES = "\n".join(f"n{row:08} thing number {row}" for row in range(10))


def latentdd(capsys, *arguments) -> tuple[int, str]:
    """Exit code and what was printed on both streams."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:  # the parser's own
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def original(tmp_path):
    """A tiny class-conditional original: checkpoint, YAML, class names."""
    params = config_of()
    unet, stage = (randomise(module) for module in build(params))
    state = checkpoint_of(params, unet, stage, torch.zeros(11, 16))
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    (tmp_path / "names.txt").write_text(NAMES)
    return tmp_path


def test_actions(capsys):
    code, shown = latentdd(capsys, "prior", "--help")
    assert code == 0
    assert all(f"\n  {action} " in shown for action in ("train", "convert", "sample"))
    for arguments in ([], ["draw"]):
        with pytest.raises(UserError, match="expected one of: train, convert, sample; got "):
            prior.main("prior", arguments)


def test_convert(capsys, original):
    out = original / "made" / "prior"
    arguments = (
        "prior",
        "convert",
        original / "model.ckpt",
        "--config",
        original / "model.yaml",
        "--out",
        out,
    )
    code, shown = latentdd(capsys, *arguments)
    assert code == 2
    assert "n_classes=11, which must be the 1000 classes" in shown
    assert "--class-names FILE" in shown
    code, shown = latentdd(
        capsys, *arguments, "--class-names", original / "names.txt", "--licence", "CC BY 4.0"
    )
    assert (code, shown) == (0, f"prior written to {out}\n")
    card = json.loads((out / "prior.json").read_text())
    assert card["classes"][7] == {"id": 7, "wnid": "n00000007", "name": "thing number 7"}
    assert (card["null_class"], card["licence"]) == (10, "CC BY 4.0")
    assert LatentDiffusionPrior(str(out)).latent_shape == (3, 8, 8)
    code, shown = latentdd(capsys, *arguments)
    assert code == 2
    assert "exists; name a new folder" in shown


def test_convert_needs_a_config(capsys):
    code, shown = latentdd(capsys, "prior", "convert", "model.ckpt", "--out", "x")
    assert code == 2
    assert "config" in shown


def test_the_classes_of_imagenet():
    classes = imagenet_classes()
    assert [info.label for info in classes] == list(range(1000))
    assert classes[0] == ClassInfo(0, 0, "n01440764", "tench")
    assert classes[701].name == "parachute"


def test_class_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\n\nn01 the  dog\n")
    assert read_class_names(path) == [ClassInfo(0, 0, "cat", "cat"), ClassInfo(1, 1, "n01", "the  dog")]
    path.write_text("cat\ncat\n")
    with pytest.raises(UserError, match="names cat twice"):
        read_class_names(path)
    with pytest.raises(UserError, match=r"--class-names .* cannot be read"):
        read_class_names(tmp_path)


@torch.no_grad()
def test_sample_draws_what_the_prior_generates(capsys, tiny_prior_path, tmp_path):
    out = tmp_path / "grids" / "grid.png"
    options = ("--per-class", 2, "--num-steps", 2, "--guidance-scale", 1.5, "--seed", 3, "--out", out)
    code, shown = latentdd(capsys, "prior", "sample", tiny_prior_path, "--classes", "digit-7", "2", *options)
    assert code == 0, shown
    assert f"2 x 2 images drawn to {out}" in shown
    model = LatentDiffusionPrior(str(tiny_prior_path))
    images = []
    for row in (7, 2):
        noise = generator(3, "prior sample", f"digit-{row}")
        latents = model.sample(torch.tensor([row, row]), noise, num_steps=2, guidance_scale=1.5)
        images.append(to_bytes(model.decode(latents)))
    named = [ClassInfo(0, 7, "digit-7", "7"), ClassInfo(1, 2, "digit-2", "2")]
    expected = draw_grid(torch.cat(images), torch.tensor([0, 0, 1, 1]), named)
    assert Image.open(out).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("arguments", "text"), [
        (("--classes", "cat", "3"), "--classes: the prior does not know cat; it knows digit-0 (0), digit-1 (1)"),
        (("--out", "grid.jpg"), "--out (grid.jpg) must end in .png"),
        (("--per-class", 11), "--per-class (11) is too many for a grid; at most 10"),
        (("--per-class", 0), "per-class"),
        (("--num-steps", 1000), "1000"),
        (("--guidance-scale", -1), "guidance-scale"),
        (("--out", "/dev/null/grid.png"), "cannot write /dev/null/grid.png"),
    ],
)  # fmt: skip
def test_sample_refuses(capsys, tiny_prior_path, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    code, shown = latentdd(
        capsys, "prior", "sample", tiny_prior_path, "--num-steps", 1, "--out", "grid.png", *arguments
    )
    assert code == 2
    assert text in shown
    assert not list(tmp_path.iterdir())


def test_choosing_classes():
    known = [
        ClassInfo(0, 0, "a", "crane"),
        ClassInfo(1, 1, "b", "crane"),
        ClassInfo(2, 2, "c", "maillot, tank suit"),
    ]
    assert choose_classes(known, []) == known
    assert choose_classes(known, ["maillot, tank suit", "b,a", "c"]) == [known[2], known[1], known[0]]
    with pytest.raises(UserError, match="crane names several classes; give one of a, b"):
        choose_classes(known, ["crane"])


@torch.no_grad()
def test_sample_of_an_unconditional_prior(capsys, original):
    params = config_of("unconditional")
    unet, stage = (randomise(module) for module in build(params))
    torch.save({"state_dict": checkpoint_of(params, unet, stage)}, original / "faces.ckpt")
    (original / "faces.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    config = ("--config", original / "faces.yaml", "--out", original / "faces")
    assert latentdd(capsys, "prior", "convert", original / "faces.ckpt", *config)[0] == 0
    grid = ("prior", "sample", original / "faces", "--num-steps", 1, "--out", original / "faces.png")
    code, shown = latentdd(capsys, *grid)
    assert code == 0, shown
    assert Image.open(original / "faces.png").size[1] > 5 * 64
    code, shown = latentdd(capsys, *grid, "--classes", "cat")
    assert code == 2
    assert "the prior is unconditional and knows no classes" in shown
