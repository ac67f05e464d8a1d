"""`latentdd prior convert`: an original checkpoint as a prior folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from ldd.disk.locks import writing
from ldd.errors import UserError
from ldd.priors.class_table import imagenet_classes, read_class_names
from ldd.priors.conversion.checkpoint import Weights, convert_checkpoint
from ldd.priors.conversion.transformer import convert_transformer
from ldd.runs.ending import Ending
from ldd.runs.history import record_command
from ldd.runs.options import parse
from ldd.runs.parser import Parser


def main(arguments: Sequence[str]) -> Ending:
    """Convert the checkpoint."""
    options = parse(_parser(), arguments)
    _check(options)
    classes = imagenet_classes() if options.class_names is None else read_class_names(options.class_names)
    common = {"classes": classes, "licence": options.licence, "trust": options.trust_checkpoint}
    with writing(options.out):
        if options.form == "ldm":
            weights: Weights = options.weights or "raw"
            out = convert_checkpoint(
                options.checkpoint, options.config, options.out, weights=weights, **common
            )
        else:
            given = {"heads": options.heads, "weights": options.weights or "ema"}
            out = convert_transformer(
                options.checkpoint, options.form, options.vae, options.out, **given, **common
            )
        record_command(out, ["prior", "convert", *arguments])
    return Ending((out,), ("prior", "sample", out, "--out", Path(out).with_name("samples.png")))


def _check(options: Namespace) -> None:
    """Raise for an option that the form needs, or that means nothing to it."""
    transformer = options.form != "ldm"
    needed, other = ("vae", ("config",)) if transformer else ("config", ("vae", "heads"))
    if options[needed] is None:
        raise UserError(f"--form {options.form} needs --{needed}, see latentdd prior convert --help")
    for name in other:
        if options[name] is not None:
            raise UserError(
                f"--{name} ({options[name]}) means nothing to --form {options.form}; leave it out"
            )


def _parser() -> Parser:
    # By hand: --config is a plain file here, not a file of this command's own options.
    parser = Parser(
        prog="latentdd prior convert",
        description="Write an original checkpoint as a prior folder: latent diffusion (CompVis), DiT or SiT.",
    )
    parser.add_argument("checkpoint", type=str, help="The .ckpt, .pt or .safetensors file.")
    parser.add_argument(
        "--form",
        type=Literal["ldm", "dit", "sit"],
        default="ldm",
        help="Whose checkpoint it is: latent diffusion (CompVis), DiT, or SiT (REPA's too).",
    )
    parser.add_argument(
        "--config", type=str | None, default=None, help="Of ldm: the YAML the checkpoint was trained with."
    )
    parser.add_argument(
        "--vae", type=str | None, default=None, help="Of dit and sit: folder or hub id of the autoencoder."
    )
    parser.add_argument(
        "--heads",
        type=int | None,
        default=None,
        help="Of dit and sit: attention heads. Default: width / 64, and 16 for the width of XL, 1152.",
    )
    parser.add_argument("--out", type=str, required=True, help="Folder to write; it must not exist.")
    parser.add_argument(
        "--licence", type=str, default="unknown", help="Terms of the weights, for prior.json."
    )
    parser.add_argument(
        "--weights",
        type=Weights | None,
        default=None,
        help="The network's weights as trained, or their moving average. Default of ldm: raw (what LD3M samples from, "
        "and all that cin256-v2's YAML keeps); of training checkpoints of dit and sit: ema.",
    )
    parser.add_argument(
        "--class-names",
        type=str | None,
        default=None,
        help="Text file with a class per line in the order of the class table: folder name, readable name. "
        "Default: the 1,000 classes of ImageNet.",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="Read a pickle that holds more than tensors; inert stand-ins take the place of its other objects.",
    )
    return parser
