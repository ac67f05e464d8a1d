"""Original checkpoints become prior folders: every tensor accounted for, outputs equal, nothing executed."""

import json
import os
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from original_ldm import FirstStage, UNet, abar, build, checkpoint_of, config_of, ema_name, randomise
from safetensors.torch import save_file
from torch import Tensor

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior
from ldd.priors.conversion.checkpoint import convert_checkpoint
from ldd.priors.conversion.config import read_original
from ldd.priors.conversion.keys import autoencoder_origins, unet_origins
from ldd.priors.conversion.reading import read_state

CLASSES = [ClassInfo(row, row, f"n{row:08}", f"thing {row}") for row in range(10)]


@dataclass
class Case:
    """An original model on disk."""

    folder: Path
    params: dict
    unet: UNet
    stage: FirstStage
    state: dict[str, Tensor] = field(default_factory=dict)

    def convert(self, out="prior", state=None, params=None, payload=None, **arguments) -> Path:
        config, checkpoint = self.folder / "model.yaml", self.folder / "model.ckpt"
        config.write_text(yaml.safe_dump({"model": {"target": "x", "params": params or self.params}}))
        if payload is None or isinstance(payload, dict):
            torch.save({"state_dict": state or self.state, "epoch": 3, **(payload or {})}, checkpoint)
        else:
            checkpoint.write_bytes(payload)
        settings = {"classes": CLASSES, "licence": "MIT"} | arguments
        return convert_checkpoint(checkpoint, config, self.folder / out, **settings)

    def refused(self, *texts, **arguments) -> str:
        """The error's message; nothing may be left behind."""
        with pytest.raises(UserError) as caught:
            self.convert(**arguments)
        assert all(text in str(caught.value) for text in texts), str(caught.value)
        assert {path.name for path in self.folder.iterdir()} <= {"model.yaml", "model.ckpt"}
        return str(caught.value)


@pytest.fixture
def case(tmp_path):
    def make(kind="class", first_stage="vq", **unet) -> Case:
        params = config_of(kind, first_stage)
        params["unet_config"]["params"] |= unet
        if unet.get("num_head_channels", -1) != -1:
            params["unet_config"]["params"].pop("num_heads", None)
        network, stage = (randomise(module, seed) for seed, module in enumerate(build(params)))
        table = torch.randn(11, 16, generator=torch.Generator().manual_seed(0)) if kind == "class" else None
        return Case(tmp_path, params, network, stage, checkpoint_of(params, network, stage, table))

    return make


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Relative 1e-4, of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "first_stage", "unet", "stage"), [
        ("class", "vq", {}, {}),
        ("class", "kl", {"num_head_channels": 32, "attention_resolutions": [1, 2]}, {"attn_resolutions": [8]}),
        ("unconditional", "kl", {}, {}),
        ("unconditional", "vq", {"num_head_channels": -1, "num_heads": 1, "attention_resolutions": []}, {}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_outputs_equal_the_originals(case, kind, first_stage, unet, stage):
    made = case(kind, first_stage, **unet)
    if stage:
        made.params["first_stage_config"]["params"]["ddconfig"] |= stage
        made.stage = randomise(build(made.params)[1], 5)
        made.state = {k: v for k, v in made.state.items() if not k.startswith("first_stage_model.")} | {
            f"first_stage_model.{k}": v for k, v in made.stage.state_dict().items()
        }
    folder = made.convert()
    channels = made.params["channels"]
    x, t, images = noise(2, channels, 8, 8), torch.tensor([3, 870]), noise(2, 3, 16, 16).clamp(-1, 1)
    if kind == "class":
        network = UNet2DConditionModel.from_pretrained(folder / "unet")
        context = made.state["cond_stage_model.embedding.weight"][[4, 10]][:, None]
        assert_close(network(x, t, encoder_hidden_states=context).sample, made.unet(x, t, context))
    else:
        network = UNet2DModel.from_pretrained(folder / "unet")
        assert_close(network(x, t).sample, made.unet(x, t))
    autoencoder = AutoencoderPrior(str(folder))
    assert (autoencoder.image_size, autoencoder.licence) == (16, "MIT")
    assert_close(autoencoder.encode(images), made.stage.encode(images))
    assert_close(autoencoder.decode(x), made.stage.decode(x))


@torch.no_grad()
def test_the_folder_is_a_prior(case):
    made = case()
    folder = made.convert()
    prior = LatentDiffusionPrior(str(folder), num_steps=4, guidance_scale=2.0, skip="none")
    table_of_bars = DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
    assert (table_of_bars.double() - abar(made.params)).abs().max() < 1e-6
    assert prior.classes == CLASSES
    assert prior.rows(CLASSES[3:5]).tolist() == [3, 4]
    table = made.state["cond_stage_model.embedding.weight"]
    assert torch.equal(prior.null(1)[0, 0], table[10])
    # The original's DDIM: timesteps 1, 251, ...; the last step ends at the first abar of the table.
    z, start, bars = noise(2, 3, 8, 8), noise(2, 3, 8, 8).flip(0), abar(made.params).float()
    first = bars[751]
    x = first.sqrt() * z + (1 - first).sqrt() * start
    for t, before in ((751, bars[501]), (501, bars[251]), (251, bars[1]), (1, bars[0])):
        times = torch.full((2,), t)
        without, given = (
            made.unet(x, times, context[:, None]) for context in (table[[10, 10]], table[[3, 4]])
        )
        e = without + 2.0 * (given - without)
        x0 = (x - (1 - bars[t]).sqrt() * e) / bars[t].sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * e
    assert_close(prior.denoise(z, prior.embed(torch.tensor([3, 4])), start), x)


def test_published_sizes_and_names(tmp_path):
    """On the meta device: parameter counts, and every name and shape of the original's, at full size."""
    for kind, first_stage, millions in (("class", "vq", 400.9), ("unconditional", "kl", 274.1)):
        params = config_of(kind, first_stage, tiny=False)
        (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
        original = read_original(tmp_path / "model.yaml")
        with torch.device("meta"):
            unet, stage = build(params)
        if kind == "class":
            assert original.table_shape == (1001, 512)
            assert round(count(original.autoencoder), 1) == 55.3
        else:  # the U-Net for three channels, as published over a VQ first stage
            assert original.image_size == 256
            params = config_of(kind, "vq", tiny=False)
            (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
            assert round(count(read_original(tmp_path / "model.yaml").unet), 1) == 274.1
        assert abs(count(original.unet) - millions) < 0.1
        for ours, origins, theirs in (
            (original.unet, unet_origins(original.unet), unet.state_dict()),
            (original.autoencoder, autoencoder_origins(original.autoencoder), stage.state_dict()),
        ):
            assert {origin.key for origin in origins.values()} == set(theirs)
            shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
            assert all(origin.fits(theirs[origin.key], shapes[name]) for name, origin in origins.items())


def count(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@torch.no_grad()
def test_moving_average(case):
    made = case()
    raw, ema = made.convert("raw"), made.convert("ema", weights="ema")
    key = "input_blocks.0.0.weight"
    for folder, expected in ((raw, made.unet.state_dict()[key]), (ema, made.state[ema_name(key)])):
        assert torch.equal(UNet2DConditionModel.from_pretrained(folder / "unet").conv_in.weight, expected)
        assert (folder / "README.md").read_text().count(f"{folder.name} weights") == 1


def test_no_moving_average_in_the_file(case):
    made = case()
    state = {key: value for key, value in made.state.items() if not key.startswith("model_ema")}
    made.refused("no moving average", "--weights raw", state=state, weights="ema")


@torch.no_grad()
def test_scale_from_the_checkpoint(case):
    made = case("unconditional", "kl")
    params = made.params | {"scale_by_std": True}
    folder = made.convert(params=params, state=made.state | {"scale_factor": torch.tensor(0.25)})
    images = noise(1, 3, 16, 16).clamp(-1, 1)
    assert_close(AutoencoderPrior(str(folder)).encode(images), 0.25 * made.stage.encode(images))
    card = json.loads((folder / "prior.json").read_text())
    assert card == {"classes": [], "null_class": -1, "image_size": 16, "licence": "MIT"}
    assert not (folder / "class_embedding.safetensors").exists()
    with pytest.raises(UserError, match="1 missing: scale_factor"):
        made.convert("second", params=params)


@torch.no_grad()
@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (torch.tensor(0.18215), None),
        (torch.tensor([0.18215]), None),
        (torch.tensor(0.25), "scale_factor is 0.25 and the config's 0.18215"),
        (torch.tensor(0.0), "scale_factor is 0.0, not a number above 0"),
        (torch.tensor(float("nan")), "scale_factor is nan"),
        (torch.ones(2), "scale_factor is nan"),
    ],
)
def test_a_scale_beside_that_of_the_config(case, found, refused):
    made = case("unconditional", "kl")
    params, state = made.params | {"scale_factor": 0.18215}, made.state | {"scale_factor": found}
    if refused is None:
        assert AutoencoderPrior(str(made.convert(params=params, state=state))).scale == 0.18215
        return
    with pytest.raises(UserError, match=refused):
        made.convert(params=params, state=state)


def test_every_key_is_accounted_for(case):
    made = case()
    gone = "model.diffusion_model.middle_block.1.proj_in.weight"
    stage_key = "first_stage_model.decoder.mid.attn_1.q.bias"
    state = {key: value for key, value in made.state.items() if key not in (gone, stage_key)}
    state["model.diffusion_model.label_emb.weight"] = torch.zeros(3)
    message = made.refused("do not fit together", state=state)
    assert f"2 missing: {stage_key}, {gone}\n" in message
    assert "1 left over: model.diffusion_model.label_emb.weight" in message
    wrong = made.state | {"first_stage_model.conv_in.weight": torch.zeros(1)}
    made.refused("1 left over: first_stage_model.conv_in.weight", state=wrong)


def test_the_wrong_yaml(case):
    made = case()
    params = config_of()
    params["unet_config"]["params"]["num_res_blocks"] = 1
    made.refused("left over: model.diffusion_model.input_blocks.", params=params)
    params = config_of()
    params["first_stage_config"]["params"]["n_embed"] = 31
    made.refused(
        "1 of another shape: first_stage_model.quantize.embedding.weight is (32, 3), not (31, 3)",
        params=params,
    )
    made.refused(
        "noise schedule", "is not the one in the checkpoint", params=config_of() | {"linear_end": 0.02}
    )
    made.refused("left over: cond_stage_model.embedding.weight", params=config_of("unconditional"))


@pytest.mark.parametrize(
    ("section", "setting", "text"), [
        ("unet_config", {"use_scale_shift_norm": True}, "use_scale_shift_norm=True has no counterpart"),
        ("unet_config", {"window": 4}, "unknown settings window"),
        ("unet_config", {"context_dim": 8}, "context_dim=8 is not cond_stage_config's embed_dim=16"),
        ("unet_config", {"in_channels": 6}, "in_channels=6 is not the first stage's embed_dim=3"),
        ("unet_config", {"channel_mult": "many"}, "of another form"),
        ("cond_stage_config", {"n_classes": 1001}, "must be the 10 classes of the class table and one null row"),
        (None, {"beta_schedule": "cosine"}, "beta_schedule='cosine' is not supported"),
        (None, {"conditioning_key": "concat"}, "with conditioning_key='concat' is not supported"),
        (None, {"first_stage_config": None}, "no section 'first_stage_config"),
    ],
)  # fmt: skip
def test_settings_without_a_counterpart(case, section, setting, text):
    made = case()
    (made.params[section]["params"] if section else made.params).update(setting)
    made.refused(text)


def test_many_heads_of_several_widths(case):
    made = case("unconditional")
    made.params["unet_config"]["params"] |= {
        "num_heads": 8, "num_head_channels": -1, "attention_resolutions": [1, 2],
    }  # fmt: skip
    made.refused("num_heads=8 over levels of [32, 64] channels has no counterpart")


def test_damaged_files(case):
    made = case()
    whole = made.folder / "whole"
    torch.save({"state_dict": made.state}, whole)
    data = whole.read_bytes()
    whole.unlink()
    for payload in (data[: len(data) // 2], data[:-200], b"", b"<html>not found</html>"):
        made.refused("model.ckpt) is truncated or no checkpoint", payload=payload)
    torch.save({"state_dict": made.state}, whole, _use_new_zipfile_serialization=False)
    data = whole.read_bytes()
    whole.unlink()
    made.refused("is truncated or no checkpoint", payload=data[: len(data) // 2])
    made.refused("holds no tensors under 'state_dict'", state={"a": 1})
    broken = made.state["first_stage_model.quant_conv.weight"].clone()
    broken[0] = torch.nan
    made.refused("other than finite", state=made.state | {"first_stage_model.quant_conv.weight": broken})


def test_missing_files_and_bad_folders(case, tmp_path):
    made = case()
    (tmp_path / "prior").mkdir()
    with pytest.raises(UserError, match=r"out \(.*prior\) exists"):
        made.convert()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/prior"):
        made.convert("file/prior")
    with pytest.raises(UserError, match=r"checkpoint \(none.ckpt\) does not exist"):
        read_state("none.ckpt")
    with pytest.raises(UserError, match=r"none.yaml cannot be read as YAML .* as config"):
        read_original("none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match=r"no section 'model\.params'"):
        read_original(tmp_path / "list.yaml")


class Strike:
    """Unpickled by the ordinary reader, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects(case, tmp_path, zipped, monkeypatch):
    """As in the published files: a Lightning callback of a release that is not installed."""
    module = types.ModuleType("pytorch_lightning_of_old")
    module.ModelCheckpoint = type("ModelCheckpoint", (dict,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made, struck, path = case(), tmp_path / "struck", tmp_path / "objects.ckpt"
    content = {
        "callbacks": {module.ModelCheckpoint: {"best": 1.0}, "one": module.ModelCheckpoint(a=[1])},
        "strike": Strike(struck),
        "state_dict": made.state,
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, module.__name__)
    data = path.read_bytes()
    path.unlink()
    message = made.refused("weights_only=True", "--trust-checkpoint", "ModelCheckpoint", payload=data)
    assert "mkdir" in message or not zipped  # an old file is refused at the first
    made.convert(payload=data, trust=True)
    assert not struck.exists()
    read = read_state(tmp_path / "model.ckpt", trust=True)
    assert all(torch.equal(read[key], value) for key, value in made.state.items())


def test_safetensors(case, tmp_path):
    made = case()
    save_file({key: value.clone() for key, value in made.state.items()}, tmp_path / "model.safetensors")
    read = read_state(tmp_path / "model.safetensors")
    assert all(torch.equal(read[key], value) for key, value in made.state.items())
