"""What a folder of each form may hold, how its classes are found, and what is said when something is wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from huggingface_hub import constants
from safetensors.torch import load_file
from tiny_denoisers import dit_pipeline, ldm_pipeline, name_rows, text_pipeline, tiny_transformer

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, loading
from ldd.runtime.seeding import seeded

KNOWN = ClassInfo(0, 0, "tench", "tench")
CRANE = ClassInfo(1, 1, "my cranes", "crane")


@pytest.fixture
def dit(tmp_path) -> Path:
    return name_rows(dit_pipeline(), tmp_path / "dit")


@pytest.fixture
def ldm(tmp_path) -> Path:
    ldm_pipeline().save_pretrained(tmp_path / "ldm")
    return tmp_path / "ldm"


@pytest.fixture
def text(tmp_path) -> Path:
    pytest.importorskip("transformers", reason="needs the extra text")
    text_pipeline(tmp_path).save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sizes_and_licence_come_from_the_components(dit, ldm, text):
    """Without prior.json: 8 latents a side and factor 4 are 32 px; the licence is in the head of the model card."""
    (dit / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [a]\n---\n# Card\n")
    (text / "README.md").write_text("---\nlicense: other\nlicense_name: open-rail\n---\n")
    (ldm / "README.md").write_text("# No head\n---\nlicense: mit\n---\n")
    priors = [LatentDiffusionPrior(str(folder)) for folder in (dit, ldm, text)]
    assert [prior.licence for prior in priors] == ["cc-by-nc-4.0", "unknown", "open-rail"]
    assert {(prior.image_size, prior.latent_shape) for prior in priors} == {(32, (4, 8, 8))}
    assert LatentDiffusionPrior(str(dit), image_size=48).latent_shape == (4, 12, 12)


def test_each_block_has_its_own_condition_unless_tied(dit):
    tables = torch.stack(
        [
            load_file(dit / "transformer" / "diffusion_pytorch_model.safetensors")[
                f"transformer_blocks.{block}.norm1.emb.class_embedder.embedding_table.weight"
            ]
            for block in range(2)
        ]
    )
    rows = torch.tensor([3, 0, 3])
    prior, tied = LatentDiffusionPrior(str(dit)), LatentDiffusionPrior(str(dit), tied=True)
    assert torch.equal(prior.embed(rows), tables[:, rows].transpose(0, 1))
    assert torch.equal(prior.null(3), tables[:, 5].expand(3, -1, -1))
    torch.testing.assert_close(tied.embed(rows), tables[:, rows].mean(0)[:, None], rtol=0, atol=1e-6)
    # Published models repeat one table in every block: tied or not is the same there.
    model = dit_pipeline().transformer
    first = model.transformer_blocks[0].norm1.emb.class_embedder
    model.transformer_blocks[1].norm1.emb.class_embedder.load_state_dict(first.state_dict())
    model.save_pretrained(dit / "transformer")
    prior, tied = LatentDiffusionPrior(str(dit)), LatentDiffusionPrior(str(dit), tied=True)
    assert (prior.embed(rows).shape, tied.embed(rows).shape) == ((3, 2, 16), (3, 1, 16))
    z, n = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(prior.denoise(z, prior.embed(rows), n), tied.denoise(z, tied.embed(rows), n))


def test_published_transformer_under_its_old_name_and_as_bin_file(dit):
    """facebook/DiT-XL-2-256 says Transformer2DModel, with settings the new class dropped, and has no safetensors."""
    expected = LatentDiffusionPrior(str(dit)).unet.state_dict()
    path = dit / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    edit(dit / "transformer" / "config.json", _class_name="Transformer2DModel", cross_attention_dim=None)
    found = LatentDiffusionPrior(str(dit)).unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    torch.save({"a": Path("code")}, path.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"transformer cannot be loaded .* damaged or incomplete"):
        LatentDiffusionPrior(str(dit))


def test_another_transformer_under_that_old_name_is_not_damaged(dit):
    edit(dit / "transformer" / "config.json", _class_name="Transformer2DModel", norm_type="ada_norm_single")
    with pytest.raises(
        UserError, match=r"of another kind \(norm_type='ada_norm_single'; PixArt's .* DiTTransformer"
    ):
        LatentDiffusionPrior(str(dit))


def test_random_weights_keep_the_first_stage(dit, kl_folder):
    for folder, part in ((dit, "transformer"), (kl_folder, "unet")):
        prior, random = (LatentDiffusionPrior(str(folder), init=init) for init in ("pretrained", "random"))
        again = LatentDiffusionPrior(str(folder), init="random")
        weight = next(prior.unet.parameters())
        assert not torch.equal(next(random.unet.parameters()), weight), part
        assert torch.equal(next(random.unet.parameters()), next(again.unet.parameters()))
        pairs = zip(prior.autoencoder.parameters(), random.autoencoder.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not any(parameter.requires_grad for parameter in random.parameters())
    with pytest.raises(UserError, match="init='zero' is unknown; choose one of pretrained, random"):
        LatentDiffusionPrior(str(dit), init="zero")


def test_mapping_of_classes(dit, kl_folder):
    """By WordNet id or name of the data's class, to a row or a name; a name of two rows tells nothing."""
    prior = LatentDiffusionPrior(str(dit), classes={"my cranes": 4, "koi": "goldfish"})
    koi = ClassInfo(2, 2, "n9", "koi")
    assert prior.rows([KNOWN, CRANE, koi]).tolist() == [0, 4, 1]
    offers = r"does not know the classes my cranes \(crane\); it knows tench \(tench\), .*classes: \{.*text-to-image.*"
    with pytest.raises(UserError, match=offers + r"unconditional .*latentdd prior train"):
        LatentDiffusionPrior(str(dit)).rows([KNOWN, CRANE])
    for wish in (6, -1, "carp"):
        prior = LatentDiffusionPrior(str(dit), classes={"koi": wish})
        with pytest.raises(UserError, match=rf"maps n9 \(koi\) to {wish!r}, .* rows 0 to 5 and knows tench"):
            prior.rows([koi])
    assert LatentDiffusionPrior(str(kl_folder), classes={"koi": "digit-3"}).rows([koi]).tolist() == [3]


def test_rows_without_names(dit):
    edit(dit / "model_index.json", id2label=None)
    prior = LatentDiffusionPrior(str(dit), classes={"crane": 2})
    assert prior.rows([CRANE]).tolist() == [2]
    with pytest.raises(
        UserError, match=r"classes tench \(tench\); it knows none by name, only the rows 0 to 5"
    ):
        prior.rows([KNOWN])


def test_prompts(text):
    prior = LatentDiffusionPrior(str(text), prompt="{name}, {wnid}", classes={"crane": "a bird"})
    assert prior.rows([CRANE, KNOWN, CRANE]).tolist() == [0, 1, 0]
    assert prior.rows([KNOWN]).tolist() == [1]
    tokens = prior.embed(torch.tensor([1, 0, 1]))
    assert tokens.shape == (3, 32, 16)
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.allclose(tokens[0], tokens[1])
    with pytest.raises(
        UserError, match=r"the prompt 'kkkkk.* of class a has .* tokens, the text encoder reads 32"
    ):
        prior.rows([ClassInfo(0, 0, "a", "k" * 50)])
    with pytest.raises(UserError, match=r"maps my cranes \(crane\) to 3, .* give the class's prompt as text"):
        LatentDiffusionPrior(str(text), classes={"crane": 3}).rows([CRANE])
    for template, message in (("a {nam}", r"asks for \{nam\}"), ("a {name", "is not a template")):
        with pytest.raises(UserError, match=message):
            LatentDiffusionPrior(str(text), prompt=template)


@pytest.mark.parametrize(
    ("form", "arguments", "message"),
    [
        (
            "dit",
            {"prompt": "a {name}"},
            "prompt='a {name}' has no effect here: the prior is a diffusion transformer",
        ),
        ("ldm", {"tied": True}, "tied=True has no effect here: the prior is a U-Net"),
        ("ldm", {"classes": {"a": 0}}, "classes is given, but the prior is unconditional"),
        ("ldm", {"prompt": "a"}, "prompt='a' has no effect here: .*no text_encoder/ next to unet/"),
        (
            "dit",
            {"image_size": 36},
            "latents of 9 x 9, but component 'transformer' needs a multiple of 2; .* 32 or 40",
        ),
        (
            "ldm",
            {"image_size": 4},
            "latents of 1 x 1, but component 'unet' needs a multiple of 2; nearest .* 8$",
        ),
    ],
)
def test_arguments_that_do_not_fit(request, form, arguments, message):
    with pytest.raises(UserError, match=message):
        LatentDiffusionPrior(str(request.getfixturevalue(form)), **arguments)


def test_components_that_do_not_fit(dit):
    with seeded(0, "three channels"):
        model = tiny_transformer(channels=3)
    weights = shutil.copytree(dit, dit.parent / "other") / "transformer"
    model.save_pretrained(weights)
    with pytest.raises(
        UserError, match="'transformer' maps 3 to 6 channels but the autoencoder's latents have 4"
    ):
        LatentDiffusionPrior(str(weights.parent))
    edit(dit / "model_index.json", id2label={"6": "a"})
    with pytest.raises(UserError, match=r"id2label names row 6, but the class tables .* have 6 rows"):
        LatentDiffusionPrior(str(dit))
    edit(dit / "model_index.json", id2label={"first": "a"})
    with pytest.raises(UserError, match="id2label is malformed"):
        LatentDiffusionPrior(str(dit))


def test_missing_and_damaged_components(text, dit, monkeypatch):
    weights = text / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"text_encoder cannot be loaded .* damaged or incomplete"):
        LatentDiffusionPrior(str(text))
    shutil.rmtree(text / "tokenizer")
    with pytest.raises(UserError, match="component 'tokenizer' is missing"):
        LatentDiffusionPrior(str(text))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers .* pip install 'latentdd\[text\]'"):
        LatentDiffusionPrior(str(text))
    path = dit / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"transformer cannot be loaded .* damaged or incomplete"):
        LatentDiffusionPrior(str(dit))
    shutil.rmtree(dit / "transformer")
    with pytest.raises(
        UserError, match=r"no diffusers config.json in .*unet nor in transformer/; a prior folder holds"
    ):
        LatentDiffusionPrior(str(dit))


def test_hub_files_of_every_form(dit, monkeypatch):
    """Variants are asked for where a component has no safetensors, and `.bin` files where it has no such either."""
    asked = []
    transformer = DiTTransformer2DModel.from_pretrained(dit / "transformer")
    (dit / "transformer" / "diffusion_pytorch_model.safetensors").unlink()

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        if len(asked) == 3:
            transformer.save_pretrained(dit / "transformer", safe_serialization=False)
        return str(dit)

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    assert LatentDiffusionPrior("owner/dit").image_size == 32
    assert asked[1][-1] == "transformer/diffusion_pytorch_model.fp16.safetensors"
    assert asked[2:] == [["transformer/diffusion_pytorch_model.bin"]]
    wanted = {
        "README.md",
        "tokenizer/*",
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
    }
    assert wanted <= set(asked[0])
    asked.clear()
    assert AutoencoderPrior("owner/dit").image_size == 32
    assert not any("transformer" in pattern or "text" in pattern for pattern in asked[0])
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched .* give the local folder"):
        LatentDiffusionPrior("owner/dit")
