"""Folders, hub ids and embedded names; what is missing or damaged is named with its cure."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from tiny_prior import tiny_autoencoder

from ldd.errors import UserError
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, loading


@pytest.fixture
def folder(tmp_path, kl_folder) -> Path:
    return Path(shutil.copytree(kl_folder, tmp_path / "prior"))


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON object; None deletes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("unet", "component 'unet' is missing: no diffusers config.json in .*unet"),
        ("vae", "no autoencoder in .*: component 'vae' is missing; expected .* named vae/ or vqvae/"),
        ("scheduler", "component 'scheduler' is missing: no scheduler_config.json"),
        ("class_embedding.safetensors", "component 'class_embedding.safetensors' is missing in "),
        ("prior.json", "component 'prior.json' is missing in "),
        (
            "unet/diffusion_pytorch_model.safetensors",
            "component 'unet' has no diffusion_pytorch_model.safetensors",
        ),
    ],
)
def test_missing_component(folder, missing, message):
    target = folder / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(UserError, match=message):
        LatentDiffusionPrior(str(folder))


@pytest.mark.parametrize(
    "damaged",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "class_embedding.safetensors",
    ],
)
@pytest.mark.parametrize("kept", [0, 4, 0.5])
def test_truncated_weights(folder, damaged, kept):
    path = folder / damaged
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError, match=r"cannot be loaded .* damaged or incomplete, fetch or save it again"):
        LatentDiffusionPrior(str(folder))


def test_incomplete_weights_are_not_filled_with_random_ones(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors missing, conv_in\.weight"):
        LatentDiffusionPrior(str(folder))


def test_weights_of_another_shape(folder):
    edit(folder / "unet" / "config.json", cross_attention_dim=24)
    with pytest.raises(UserError, match="unet cannot be loaded"):
        LatentDiffusionPrior(str(folder))


def test_wrong_class(folder):
    UNet2DModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4, layers_per_block=1,
    ).save_pretrained(folder / "unet")  # fmt: skip
    with pytest.raises(UserError, match="unet holds a UNet2DModel; supported here: UNet2DConditionModel"):
        LatentDiffusionPrior(str(folder))


def test_class_table_without_its_key(folder):
    save_file({"table": torch.zeros(11, 16)}, folder / "class_embedding.safetensors")
    with pytest.raises(UserError, match="has no tensor 'weight', only table"):
        LatentDiffusionPrior(str(folder))


@pytest.mark.parametrize("key", ["classes", "null_class", "image_size"])
def test_incomplete_card(folder, key):
    edit(folder / "prior.json", **{key: None})
    with pytest.raises(UserError, match=f"prior.json is malformed .KeyError: '{key}'.; it needs classes"):
        LatentDiffusionPrior(str(folder))


def test_broken_json(folder):
    (folder / "prior.json").write_text("{")
    with pytest.raises(UserError, match=r"prior.json cannot be read .* restore it"):
        LatentDiffusionPrior(str(folder))
    (folder / "prior.json").write_text("[]")
    with pytest.raises(UserError, match=r"prior.json holds no JSON object"):
        LatentDiffusionPrior(str(folder))


def test_scheduler_of_another_class(folder):
    """DDIM would clip by default: a config that says nothing is refused, one that says it is honoured."""
    betas = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    for clip in (False, True):
        DDPMScheduler(**betas, clip_sample=clip, clip_sample_range=2.0).save_pretrained(folder / "scheduler")
        assert LatentDiffusionPrior(str(folder)).schedule.clip == (2.0 if clip else None)
    EulerDiscreteScheduler(**betas).save_pretrained(folder / "scheduler")
    with pytest.raises(
        UserError, match=r'config of a EulerDiscreteScheduler .* would clip .* Add "clip_sample": false'
    ):
        LatentDiffusionPrior(str(folder))


def test_unusable_scheduler(folder):
    edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="wavy")
    with pytest.raises(UserError, match="cannot be used as DDIMScheduler: wavy"):
        LatentDiffusionPrior(str(folder))


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such", "/no/such", "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(UserError, match=f"path_or_hub_id='{name}': no such folder; give an existing folder"):
        AutoencoderPrior(name)


def test_file_instead_of_folder(folder):
    with pytest.raises(UserError, match=r"prior\.json' is a file; give the folder"):
        AutoencoderPrior(str(folder / "prior.json"))


def test_unreachable_hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"'nobody/nothing': no such folder here, and the hub .* give the local folder"
    ):
        LatentDiffusionPrior("nobody/nothing")


def test_gated_model(monkeypatch):
    class Refused(GatedRepoError):
        def __init__(self):  # without the answer of a server
            Exception.__init__(self, "Cannot access gated repo\nAccess to model owner/gated is restricted.")

    def snapshot_download(name, allow_patterns):
        raise Refused

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    expected = (
        r"\(Cannot access gated repo\); it is gated: .* log in \(`hf auth login`\), .* give the local folder"
    )
    with pytest.raises(UserError, match=expected):
        LatentDiffusionPrior("owner/gated")


def test_hub_id_is_downloaded_without_needless_weights(folder, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    assert LatentDiffusionPrior("owner/model").image_size == 32
    assert asked["name"] == "owner/model"
    assert {"*.json", "unet/diffusion_pytorch_model.safetensors"} <= set(asked["patterns"])
    assert AutoencoderPrior("owner/model").image_size == 32
    assert "vae/diffusion_pytorch_model.safetensors" in asked["patterns"]
    assert not any(pattern.startswith("unet") for pattern in asked["patterns"])


def as_variant(path: Path, shards: bool = False) -> None:
    """Leave a component's safetensors in half precision alone, as `save_pretrained(variant="fp16")` does."""
    tensors = {key: value.half() for key, value in load_file(path).items()}
    path.unlink()
    stem = path.name.removesuffix(".safetensors")
    if not shards:
        save_file(tensors, path.with_name(f"{stem}.fp16.safetensors"), metadata={"format": "pt"})
        return
    keys, places = sorted(tensors), {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"{stem}.fp16-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, path.with_name(name), metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    path.with_name(f"{stem}.safetensors.index.fp16.json").write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_are_there_as_a_variant_alone_are_found(folder, shards):
    plain = LatentDiffusionPrior(str(folder)).state_dict()
    as_variant(folder / "unet" / "diffusion_pytorch_model.safetensors", shards)
    as_variant(folder / "vae" / "diffusion_pytorch_model.safetensors")
    found = LatentDiffusionPrior(str(folder)).state_dict()
    for name, value in plain.items():
        kept = value if name.endswith("class_embedding") else value.half().float()
        assert found[name].equal(kept), name


def test_plain_weights_come_before_a_variant(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    plain = LatentDiffusionPrior(str(folder)).state_dict()
    path.with_name("diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert all(
        plain[name].equal(value) for name, value in LatentDiffusionPrior(str(folder)).state_dict().items()
    )


def test_variants_are_downloaded_where_a_hub_model_has_nothing_else(folder, monkeypatch):
    """The U-Net's comes as a variant, the autoencoder's as it is; nothing is asked for as a pickle."""
    as_variant(folder / "unet" / "diffusion_pytorch_model.safetensors")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(folder if len(asked) > 1 else first)

    first = folder.parent / "first"
    shutil.copytree(folder, first)
    (first / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    assert LatentDiffusionPrior("owner/model").image_size == 32
    assert not any("fp16" in pattern for pattern in asked[0])
    assert asked[1] == [
        f"unet/diffusion_pytorch_model.fp16{end}" for end in ("-*.safetensors", ".safetensors")
    ]
    assert len(asked) == 2


def test_embedded_names(folder, monkeypatch):
    monkeypatch.setattr(loading, "EMBEDDED", folder.parent)
    assert LatentDiffusionPrior("embedded:prior").image_size == 32
    with pytest.raises(
        UserError, match="'embedded:letters': no such prior in the package; embedded priors: embedded:prior"
    ):
        LatentDiffusionPrior("embedded:letters")


def test_what_diffusers_itself_writes_into_a_config_is_no_warning(tmp_path, caplog, monkeypatch):
    """It adds `block_out_channels` to each AutoencoderTiny that it saves, and warns of it when it loads one."""
    tiny_autoencoder(AutoencoderTiny).save_pretrained(tmp_path)
    assert "block_out_channels" in json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    AutoencoderPrior(str(tmp_path), 16)
    assert caplog.messages == []
    edit(tmp_path / "config.json", smoothness=3)
    AutoencoderPrior(str(tmp_path), 16)
    assert "smoothness" in caplog.text


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    LatentDiffusionPrior(str(folder))
    assert torch.equal(torch.rand(2), expected)


def test_half_precision_weights_are_widened(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    prior = LatentDiffusionPrior(str(folder))
    assert {parameter.dtype for parameter in prior.parameters()} == {torch.float32}


def spoil(path: Path, value: float) -> str:
    """Put `value` into the last number of the last tensor; its name."""
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "class_embedding.safetensors",
    ],
)
def test_weights_that_are_not_finite(folder, file, value):
    name = spoil(folder / file, value)
    with pytest.raises(UserError, match=rf"{Path(file).parent.name}.*tensor {name} holds NaN or infinite"):
        LatentDiffusionPrior(str(folder))


@pytest.mark.parametrize("name", ["scaling_factor", "shift_factor"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True, [1.0], None])
def test_scaling_that_no_latent_survives(folder, name, value):
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text()) | {name: value}
    path.write_text(json.dumps(config))
    if name == "shift_factor" and value in (0, -1.0, None) and value is not True:
        assert LatentDiffusionPrior(str(folder)).autoencoder.shift == float(value or 0)
        return
    with pytest.raises(UserError, match=rf"{name} of the autoencoder's config is|config.json cannot be read"):
        LatentDiffusionPrior(str(folder))
