"""`latentdd prior convert`: an original latent-diffusion checkpoint as a prior folder."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from ldd.priors.class_table import imagenet_classes, read_class_names
from ldd.priors.conversion.checkpoint import Weights, convert_checkpoint
from ldd.runs.history import record_command
from ldd.runs.options import parse


def main(arguments: Sequence[str]) -> None:
    """Convert the checkpoint and say where the folder is."""
    options = parse(_parser(), arguments)
    classes = imagenet_classes() if options.class_names is None else read_class_names(options.class_names)
    out = convert_checkpoint(
        options.checkpoint,
        options.config,
        options.out,
        classes=classes,
        licence=options.licence,
        weights=options.weights,
        trust=options.trust_checkpoint,
    )
    record_command(out, ["prior", "convert", *arguments])
    print(f"prior written to {out}")


def _parser() -> ArgumentParser:
    # By hand: --config is a plain file here, not a file of this command's own options.
    parser = ArgumentParser(
        prog="latentdd prior convert",
        description="Write an original (CompVis) latent-diffusion checkpoint as a prior folder.",
    )
    parser.add_argument("checkpoint", type=str, help="The .ckpt (or .safetensors) file.")
    parser.add_argument("--config", type=str, required=True, help="The YAML the checkpoint was trained with.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write; it must not exist.")
    parser.add_argument(
        "--licence", type=str, default="unknown", help="Terms of the weights, for prior.json."
    )
    parser.add_argument(
        "--weights",
        type=Weights,
        default="raw",
        help="The U-Net's weights as trained (what LD3M samples from, and all that cin256-v2's YAML keeps), or their "
        "moving average (what the original sampling script takes where the YAML keeps one).",
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
