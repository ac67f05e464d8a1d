"""`latentdd prior`: its actions as users call them, in-process."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import original_transformer
import pytest
import torch
import yaml
from lightning import Callback
from original_ldm import build, checkpoint_of, config_of, randomise
from PIL import Image
from processes import Started
from safetensors.torch import load_file, save_file
from tiny_denoisers import text_pipeline
from tiny_prior import tiny_autoencoder
from torch.nn.functional import interpolate

import ldd
from ldd import cli
from ldd.artefact.identity import refuse_other_data
from ldd.artefact.picture import draw_grid
from ldd.artefact.set import DistilledSet
from ldd.commands import prior
from ldd.data import DistillationData
from ldd.disk.files import sha256
from ldd.errors import UserError
from ldd.images import ClassInfo, to_bytes
from ldd.prior_training.module import PriorTraining
from ldd.priors import LatentDiffusionPrior
from ldd.runs.prior import PriorTrainingCLI
from ldd.runtime.seeding import generator

DIGITS = str(Path(ldd.__file__).parents[1] / "configs" / "data" / "digits.yaml")
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
    assert all(f"\n  {action} " in shown for action in ("train", "convert", "sample", "compare", "push"))
    for arguments in ([], ["draw"]):
        with pytest.raises(UserError, match="expected one of: train, convert, sample, compare, push; got "):
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
    assert (code, shown.partition("\n")[0]) == (0, f"made: {out}")
    card = json.loads((out / "prior.json").read_text())
    assert card["classes"][7] == {"id": 7, "wnid": "n00000007", "name": "thing number 7"}
    assert (card["null_class"], card["licence"]) == (10, "CC BY 4.0")
    assert LatentDiffusionPrior(str(out)).latent_shape == (3, 8, 8)
    code, shown = latentdd(capsys, *arguments)
    assert code == 2
    assert "exists; name a new folder" in shown


def test_convert_of_a_transformer(capsys, tmp_path):
    """By its form, with the autoencoder it speaks; options of other forms are refused."""
    torch.save(original_transformer.state(), tmp_path / "model.pt")
    (tmp_path / "names.txt").write_text("".join(f"n{i}, thing {i}\n" for i in range(5)))
    tiny_autoencoder(shift_factor=None).save_pretrained(tmp_path / "vae")
    command = ("prior", "convert", tmp_path / "model.pt", "--form", "sit", "--out", tmp_path / "prior")
    given = ("--vae", tmp_path / "vae", "--heads", 2, "--class-names", tmp_path / "names.txt")
    for options, said in (
        (given[2:], "--form sit needs --vae"),
        ((*given, "--config", tmp_path / "names.txt"), "names.txt) means nothing to --form sit"),
        (given[:4], "which must be the 1000 classes"),
    ):
        code, shown = latentdd(capsys, *command, *options)
        assert code == 2
        assert said in shown
    code, shown = latentdd(capsys, *command, *given)
    assert (code, shown.partition("\n")[0]) == (0, f"made: {tmp_path / 'prior'}")
    prior = LatentDiffusionPrior(str(tmp_path / "prior"), num_steps=2)
    assert [info.name for info in prior.classes][3] == "thing 3"
    assert prior.sample(torch.tensor([1]), generator(0), num_steps=2).isfinite().all()


def test_convert_needs_a_config(capsys):
    code, shown = latentdd(capsys, "prior", "convert", "model.ckpt", "--out", "x")
    assert code == 2
    assert "config" in shown


@torch.no_grad()
def test_sample_draws_what_the_prior_generates(capsys, tiny_prior_path, tmp_path):
    out = tmp_path / "grids" / "grid.png"
    options = ("--per-class", 2, "--num-steps", 2, "--guidance-scale", 1.5, "--seed", 3, "--out", out)
    code, shown = latentdd(capsys, "prior", "sample", tiny_prior_path, "--classes", "digit-7", "2", *options)
    assert code == 0, shown
    assert "2 x 2 images\n" in shown
    assert f"made: {out}" in shown
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
        (("--out", "set"), "it is a folder's name, and --data FILE says whose classes"),
        (("--out", "grid.jpg", "--data", DIGITS), "--out (grid.jpg) must end in .png"),
        (("--out", "set", "--data", DIGITS, "--classes", "3"), "with --data the classes are the data's"),
        (("--out", "/dev/null/set", "--data", DIGITS), "out (/dev/null): File exists; choose"),
        (("--prompt", "a {name}"), "prompt='a {name}' has no effect here"),
        (("--per-class", 11), "--per-class (11) is too many for a grid; at most 10"),
        (("--per-class", 0), "per-class"),
        (("--num-steps", 1000), "1000"),
        (("--guidance-scale", -1), "guidance-scale"),
        (("--out", "/dev/null/grid.png"), "out (/dev/null): File exists; choose a writable folder"),
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


@torch.no_grad()
def test_sample_names_the_steps_that_were_typed(capsys, tiny_prior_folder, tmp_path):
    """Not the ten that a recipe would take."""
    folder = tiny_prior_folder(tmp_path / "prior", num_train_timesteps=3)
    code, said = latentdd(capsys, "prior", "sample", folder, "--num-steps", 4, "--out", tmp_path / "grid.png")
    assert code == 2, said
    assert "num_steps=4" in said


def test_sample_says_what_cannot_be_right(capsys, tiny_prior_folder, tmp_path):
    folder = tiny_prior_folder(tmp_path / "prior")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"decoder.conv_out.weight": 0 * tensors["decoder.conv_out.weight"]}, weights)
    arguments = ["prior", "sample", folder, "--num-steps", "1", "--per-class", "2", "--classes", "3", "4"]
    with pytest.warns(UserWarning, match=r"2 of 2 classes are of one colour each \(3, 4\)"):
        code, _ = latentdd(capsys, *arguments, "--out", tmp_path / "g.png")
    assert code == 0
    save_file(
        tensors
        | {
            "decoder.conv_out.bias": 3e38 * torch.ones(3),
            "decoder.conv_out.weight": 3e38 * tensors["decoder.conv_out.weight"],
        },
        weights,
    )
    code, said = latentdd(capsys, *arguments, "--out", tmp_path / "h.png")
    assert code == 2
    assert "NaN or infinite values of class '3'" in said
    assert not (tmp_path / "h.png").exists()


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
    code, shown = latentdd(capsys, *grid[:-1], original / "set", "--data", DIGITS)
    assert code == 2
    assert "samples of an unconditional prior belong to no class" in shown


@torch.no_grad()
def test_sample_writes_a_set_to_train_on(capsys, tiny_prior_path, tmp_path):
    """The data's classes, size, normalisation and test split; more images than are drawn at once."""
    arguments = ("prior", "sample", tiny_prior_path, "--data", DIGITS, "--data.subset", "['2','7']")
    options = ("--per-class", 52, "--num-steps", 1, "--guidance-scale", 1, "--seed", 3)
    code, shown = latentdd(capsys, *arguments, *options, "--out", tmp_path / "set")
    assert (code, shown.splitlines()[-3:-1]) == (0, ["2 x 52 images of 32 px", f"made: {tmp_path / 'set'}"])
    drawn, data = DistilledSet.load(tmp_path / "set"), DistillationData(subset=["2", "7"])
    refuse_other_data(drawn, data.spec)
    model = LatentDiffusionPrior(str(tiny_prior_path))
    for label, digit in enumerate((2, 7)):
        noise = generator(3, "prior sample", f"digit-{digit}")
        for part in (slice(0, 50), slice(50, 52)):
            rows = torch.full((part.stop - part.start,), digit)
            images = to_bytes(model.decode(model.sample(rows, noise, num_steps=1, guidance_scale=1)))
            assert drawn.images[drawn.labels == label][part].equal(images)
    assert drawn.manifest["test_split_fingerprint"] == data.spec.fingerprint
    assert drawn.manifest["licences"] == {"prior": "random weights", "data": data.spec.licence}
    assert drawn.manifest["config"]["num_steps"] == 1
    assert tuple(drawn.manifest["normalisation"]["mean"]) == data.spec.mean
    assert drawn.manifest["ledger"]["stages"]["sample"]["seconds"] > 0
    code, shown = latentdd(capsys, *arguments, *options, "--data.image_size", 16, "--out", tmp_path / "small")
    assert (code, shown.splitlines()[-3]) == (0, "2 x 52 images of 16 px, drawn at 32 px")
    small = DistilledSet.load(tmp_path / "small")
    expected = interpolate(drawn.images.float(), size=16, mode="bilinear", antialias=True)
    assert (
        small.images.float() - expected
    ).abs().max() <= 1.01  # bytes are rounded in each of two directions
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    code, shown = latentdd(capsys, *arguments, *options, "--out", tmp_path / "other")
    assert code == 2
    assert "holds files that are not a distilled set; name a new folder" in shown


@pytest.mark.parametrize("guidance", [1, 3])
def test_sample_of_a_text_to_image_prior_equals_its_pipeline(capsys, tmp_path, guidance):
    pytest.importorskip("transformers", reason="needs the extra text")
    pipeline = text_pipeline(tmp_path)
    pipeline.save_pretrained(tmp_path / "text")
    pipeline.set_progress_bar_config(disable=True)

    def theirs(prompt, wnid):
        noise = generator(4, "prior sample", wnid)
        made = pipeline(
            [prompt] * 2, 32, 32, 3, guidance_scale=guidance, generator=noise, output_type="np"
        ).images
        return torch.from_numpy(made).movedim(-1, 1) * 255

    sample = ("prior", "sample", tmp_path / "text", "--per-class", 2, "--num-steps", 3, "--seed", 4)
    sample += ("--guidance-scale", guidance)
    code, shown = latentdd(capsys, *sample, "--out", tmp_path / "grid.png", "--classes", "koi", "church")
    assert code == 0, shown
    grid = torch.from_numpy(np.array(Image.open(tmp_path / "grid.png"))).permute(2, 0, 1).float()
    for column, name in enumerate(
        ("koi", "church")
    ):  # cells of 64 px, enlarged twice, after 2 px and a line of names
        cell = grid[:, 18:82, 2 + 66 * column : 66 + 66 * column][:, ::2, ::2]
        assert (cell - theirs(f"a photo of a {name}", name)[0]).abs().max() <= 0.6
    # Half a level of rounding to bytes and the pipelines' 1e-4, as everywhere.
    prompt = ("--prompt", "the number {name}", "--data", DIGITS, "--data.subset", "['3','5']")
    code, shown = latentdd(capsys, *sample, *prompt, "--out", tmp_path / "set")
    assert code == 0, shown
    images = DistilledSet.load(tmp_path / "set").images.float()
    for label, name in enumerate("35"):
        expected = theirs(f"the number {name}", f"digit-{name}")
        assert (images[2 * label : 2 * label + 2] - expected).abs().max() <= 0.6
    code, shown = latentdd(capsys, *sample, "--out", tmp_path / "grid.png")
    assert code == 2
    assert "--classes is needed: the prior has no table of classes; name what to draw" in shown


RUN = [
    "--data", DIGITS, "--data.image_size", "16", "--model.autoencoder.channels", "[4,8]",
    "--model.autoencoder.norm_groups", "4", "--model.unet.channels", "[8,16]", "--model.unet.attention", "[false,true]",
    "--model.unet.norm_groups", "4", "--model.unet.middle", "false", "--model.autoencoder_steps", "4",
    "--trainer.accelerator", "cpu", "--trainer.max_steps", "14", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--checkpoint.every_n_steps", "3", "--samples.every_n_steps", "5",
    "--samples.num_steps", "2", "--samples.per_class", "1",
]  # fmt: skip


class Kill(Callback):
    """What a batch system does at its time limit, in the middle of nowhere."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)


def train(*arguments):
    return cli.main(["prior", "train", *RUN, *map(str, arguments)])


def test_a_killed_training_resumes_to_the_same_prior(capsys, tmp_path):
    folder = "--trainer.default_root_dir"
    code, shown = latentdd(capsys, "prior", "train", *RUN, folder, tmp_path / "whole")
    assert code == 0
    assert f"made: {tmp_path / 'whole' / 'prior'}" in shown.splitlines()
    killed = Started(train, folder, tmp_path / "run", "--trainer.callbacks", f"{__name__}.Kill")
    assert killed.result() is None
    assert not (tmp_path / "run" / "prior").exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    code, shown = latentdd(capsys, "prior", "train", *RUN, folder, tmp_path / "run")
    assert code == 2
    assert "already holds a run; continue it with --ckpt_path last" in shown
    code, shown = latentdd(capsys, "prior", "train", *RUN, folder, tmp_path / "run", "--ckpt_path", "last")
    assert code == 0, shown
    for file in sorted((tmp_path / "whole" / "prior").rglob("*.safetensors")):
        resumed = tmp_path / "run" / file.relative_to(tmp_path / "whole")
        assert resumed.read_bytes() == file.read_bytes(), file
    for step in (5, 10, 14):
        pictures = [tmp_path / run / "samples" / f"step-{step:06d}.png" for run in ("whole", "run")]
        # The autoencoder's four steps leave nothing to draw before the denoiser's first.
        assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_latents_in_parts_are_those_of_a_training(tmp_path, capsys, tiny_prior_path):
    """Two parts leave the file that the first step of a training would have written."""
    own = [place for place, word in enumerate(RUN) if word.startswith("--model.autoencoder")]
    words = [word for place, word in enumerate(RUN) if not {place, place - 1} & {*own}]
    frozen = [
        "prior",
        "train",
        *words,
        "--model.autoencoder",
        str(tiny_prior_path),
        "--trainer.max_steps",
        "1",
    ]
    frozen += ["--model.views", "1", "--model.mirror", "true"]

    def run(*arguments):
        code = cli.main([*frozen, "--trainer.default_root_dir", str(tmp_path / "run"), *arguments])
        return code, "".join(capsys.readouterr())

    cache = f"--model.cache_dir={tmp_path / 'parts'}"
    code, said = run(cache, "--part", "2/2")
    assert (code, "made: " in said) == (0, False)
    code, said = run(cache, "--part=1/2")
    assert (code, "made: " in said, "next: latentdd prior train" in said) == (0, True, True)
    assert "--part" not in said
    assert not (tmp_path / "run").exists()
    assert run(f"--model.cache_dir={tmp_path / 'alone'}")[0] == 0
    assert "part:" not in (tmp_path / "run" / "config.yaml").read_text()
    found = [{path.name: sha256(path) for path in (tmp_path / name).iterdir()} for name in ("parts", "alone")]
    assert len(found[0]) == 2
    assert found[0] == found[1]
    code, said = run("--part=1/2")
    assert (code, "model.cache_dir (null) must name a folder" in said) == (2, True)
    assert train("--part", "1/2") == 2
    assert "autoencoder that is yet to be trained" in capsys.readouterr().err


def test_two_devices_from_the_command_line(tmp_path):
    """Lightning starts the second process with the same command."""
    command = [
        sys.executable,
        "-m",
        "ldd",
        "prior",
        "train",
        *RUN,
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
    ]
    command += ["--trainer.default_root_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("made: ") == 1
    assert LatentDiffusionPrior(str(tmp_path / "run" / "prior")).image_size == 16


@pytest.fixture
def other_folder(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "ship"):
            for number in range(3):
                path = tmp_path / "images" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return str(tmp_path / "images")


ROOM = Path(ldd.__file__).parents[1] / "configs"
OF_DIGITS = "Apache-2.0; learned from UCI Optical Recognition of Handwritten Digits (CC BY 4.0)"


@pytest.mark.parametrize(
    ("typed", "licence"),
    [
        ([], OF_DIGITS),
        (["--data", ROOM / "data" / "folder.yaml", "--data.root", "IMAGES"], None),
        (["--data.source", "ldd.data.FolderSource", "--data.root", "IMAGES"], None),
        (["--data.source=ldd.data.FolderSource", "--data.root=IMAGES", "--model.licence=CC0"], "CC0"),
        (["--data.subset", '["0","1"]'], None),
        (["--data.image_size", "16"], OF_DIGITS),
    ],
    ids=["its own", "a data file", "a source", "stated", "a subset", "a size"],
)
def test_the_licence_of_a_recipe_is_not_that_of_other_data(other_folder, tmp_path, typed, licence):
    words = [str(word).replace("IMAGES", other_folder) for word in typed]
    words = ["--config", str(ROOM / "prior_training" / "digits.yaml"), *words, "--data.image_size", "16"]
    arguments = [*words, "--trainer.default_root_dir", str(tmp_path / "run")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cli = PriorTrainingCLI(PriorTraining, "runs/prior", arguments=arguments)
    told = any("state its licence with --model.licence" in str(one.message) for one in said)
    assert told == (licence is None)
    assert cli.options.model.licence == licence
    if licence is None and "subset" not in " ".join(words):
        terms = "weights learned from data under: unknown: the terms of the folder's images apply"
        assert cli.model._licence == terms
