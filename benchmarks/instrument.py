"""What a protocol can tell: accuracy on full data, seconds of a student, and the smallest difference that is seen.

    python -m benchmarks.instrument --protocol photo-small --root ROOT --subset imagenette \\
        --image_size 64 --out FOLDER [--draws 10] [--images_per_class 1,10] [--full_repeats 1] \\
        [--cache_dir CACHE] [--json]

Without `--root` the data are the digits. For each of the protocol's networks: accuracy after the full real data
(`full`). For each number of images a class: seconds of one student on one core; the mean over networks of `draws` draws
of random real images, its deviation s over draws, and the standard error of a difference between two sets with n seeds
each, s sqrt(2 / n), for n of 3, 5 and 10. Effects smaller than twice that are not seen. `draws` students of one draw
say how much of s is theirs. Every student is kept in FOLDER at once: the same command goes on where it was stopped.
"""

import statistics
from math import sqrt
from pathlib import Path

import torch

from benchmarks.figures import parser_of, show
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData, FolderSource
from ldd.disk.files import check_writable, write_json
from ldd.evaluation import FullReal, Protocol, RandomReal, Report, evaluate

SEEDS = (3, 5, 10)


def figures_of(report: Report, count: int) -> dict[str, float]:
    """Everything that is measured at `count` images a class, by name; accuracies in %."""
    found: dict[str, float] = {}
    for network, score in report.scores().get("full_real", {}).items():
        found[f"full, {network}, %"] = 100 * score.mean
    for network in report.networks():
        seconds = [r.seconds for r in report.latest() if (r.set, r.network) == ("random_real", network)]
        found[f"{count} a class: student, {network}, s"] = statistics.fmean(seconds)
    means = report.mean_unseen()
    found[f"{count} a class: random real, %"] = 100 * means["random_real"].mean
    for name, which in (("students of one draw", "distilled"), ("draws", "random_real")):
        score = means[which]
        found[f"{count} a class: deviation of {name}, points"] = (
            100 * score.std * sqrt(score.n / (score.n - 1))
        )
    for seeds in SEEDS:
        deviation = found[f"{count} a class: deviation of draws, points"]
        found[f"{count} a class: error of a difference, {seeds} seeds"] = deviation * sqrt(2 / seeds)
    return found


def main() -> None:
    """Measure, or go on measuring."""
    parser = parser_of(__doc__)
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--root")
    parser.add_argument("--subset")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache_dir", help="decoded images are kept here, for the next run too")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--images_per_class", default="1,10")
    parser.add_argument("--full_repeats", type=int, default=1)
    options = parser.parse_args()
    check_writable(options.out)
    per_class = [int(number) for number in options.images_per_class.split(",")]
    source = (FolderSource, options.root) if options.root else ()
    data = DistillationData(
        *source, subset=options.subset, image_size=options.image_size, cache_dir=options.cache_dir
    )
    data.setup()
    protocol, spec, figures = Protocol.load(options.protocol), data.spec, dict[str, float]()
    for count in per_class:
        images, labels = data.train_images.draw_set([count] * spec.num_classes, "one draw", 0, "instrument")
        one = DistilledSet.from_images(images, labels, spec.classes, mean=spec.mean, std=spec.std)
        one = one.with_facts(
            test_split_fingerprint=spec.fingerprint, data_fingerprints=dict(data.fingerprints)
        )
        report = evaluate(
            one,
            None,
            data,
            protocol,
            repeats=options.draws,
            baselines=[RandomReal(), *([FullReal(options.full_repeats)] if count == per_class[0] else [])],
            records=options.out / "evaluated",
            num_workers=1,
            device=torch.device("cpu"),
        )
        report.write(options.out / f"{count}-a-class")
        figures |= figures_of(report, count)
        write_json(options.out / "instrument.json", {"protocol": [protocol.id, protocol.hash], **figures})
    show(figures, options.json)


if __name__ == "__main__":
    main()
