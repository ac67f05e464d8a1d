"""Configurations as they travel: no local paths, no tokens, and everything else as it was."""

from pathlib import Path

import pytest

from ldd.disk.public import public_command, public_configuration

HOME = str(Path.home())


def test_a_configuration_keeps_all_but_places():
    config = {
        "data": {
            "root": "/srv/imagenet",
            "cache_dir": "~/caches/x",
            "subset": ["n01440764", 3],
            "pruner": None,
        },
        "model": {
            "prior": {
                "class_path": "ldd.priors.AutoencoderPrior",
                "init_args": {"path_or_hub_id": "/a/b/mine/"},
            },
            "labels": [{"weights": f"{HOME}/nets/w.safetensors"}, {"weights": "nets/w.safetensors"}],
            "prompt": "a photo of a {name} / a {wnid}, 1/2 size",
            "lr": 0.1,
        },
        "trainer": {
            "default_root_dir": "runs/x",
            "logger": {
                "init_args": {"url": "https://user.example.org/a", "api_key": "abc", "WANDB_TOKEN": "x"}
            },
        },
        "hub": "owner/name",
        "spec": ["embedded:digits", "file:///home/me/x.pt", "train:/home/me/x"],
    }
    public = public_configuration(config)
    assert public == {
        "data": {"root": "ROOT", "cache_dir": "CACHE", "subset": ["n01440764", 3], "pruner": None},
        "model": {
            "prior": {"class_path": "ldd.priors.AutoencoderPrior", "init_args": {"path_or_hub_id": "mine"}},
            "labels": [{"weights": "w.safetensors"}, {"weights": "nets/w.safetensors"}],
            "prompt": "a photo of a {name} / a {wnid}, 1/2 size",
            "lr": 0.1,
        },
        "trainer": {
            "default_root_dir": "runs/x",
            "logger": {
                "init_args": {
                    "url": "https://user.example.org/a",
                    "api_key": "WITHHELD",
                    "WANDB_TOKEN": "WITHHELD",
                }
            },
        },
        "hub": "owner/name",
        "spec": ["embedded:digits", "x.pt", "train:x"],
    }
    assert public_configuration(public) == public
    assert public_configuration(None) is None


@pytest.mark.parametrize(
    ("typed", "public"),
    [
        ("--x.token=abc", "--x.token=WITHHELD"),
        ("--trainer.logger.init_args.api_key=abc", "--trainer.logger.init_args.api_key=WITHHELD"),
        ('--x={"api_key": "abc", "project": "p"}', '\'--x={"api_key": "WITHHELD", "project": "p"}\''),
        ("--x=hf_abcdefghijklmnopqrstuv", "--x=WITHHELD"),
        ("--model.tokens=3", "--model.tokens=3"),
        ("--x=null_token_embedding", "--x=null_token_embedding"),
    ],
)
def test_tokens_do_not_travel(typed, public):
    assert public_command(["fit", typed]) == f"latentdd fit {public}"
