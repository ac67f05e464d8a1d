"""What can be known at the start is refused at the start: no image is decoded, and a run that is there stays."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import ROOT
from small_world import protocol_file

from ldd.augmentation.siamese import OPERATIONS
from ldd.data import DistillationData, FolderSource, splits
from ldd.disk.files import write_tensors
from ldd.evaluation.ahead import Listed
from ldd.experts.trajectories import ExpertSetting, ExpertTraining, Trajectories
from ldd.networks import ConvNet

PIXELS = [
    *("--config", ROOT / "configs" / "quickstart.yaml", "--model.prior", ROOT / "configs" / "prior" / "pixel.yaml"),
    *("--model.objective.lr_latents", 2, "--model.objective.network.width", 4),
    *("--trainer.max_steps", 1, "--trainer.enable_progress_bar", "false"),
]  # fmt: skip
TEACHER = {
    "class_path": "ldd.evaluation.NetworkLabels",
    "init_args": {"network": {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, of three and of five training images."""
    root = tmp_path_factory.mktemp("pictures")
    for name, count in (("few", 3), ("more", 5)):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def world(home, pictures, monkeypatch):
    """A home whose `data.yaml` names the pictures; nothing may be decoded."""
    data = {"source": "ldd.data.FolderSource", "root": str(pictures), "image_size": 32}
    (home / "data.yaml").write_text(yaml.safe_dump(data))
    (home / "small.yaml").write_text((home / protocol_file(home)).read_text())
    write_tensors(home / "ten.safetensors", ConvNet(10, 32, width=4, depth=2).state_dict())

    def decoded(*_, **__):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(splits, "_decoded", decoded)
    return home


def settings(home, **sections):
    (home / "more.yaml").write_text(yaml.safe_dump(sections))
    return ("--config=~/more.yaml",)


FIT = {
    "more images than a class has": (
        {"model": {"images_per_class": 4}},
        "images_per_class (4) is more than the 2 real images of class 'few'",
    ),
    "a larger batch than a class": (
        {"model": {"objective": {"init_args": {"real_batch": 3}}}},
        "objective.real_batch (3) is more than the 2 real images of class 'few'",
    ),
    "no recording for the labels": (
        {
            "model": {
                "labels": {
                    "class_path": "ldd.evaluation.ExpertLabels",
                    "init_args": {"trajectories": "~/nowhere"},
                }
            }
        },
        "labels.trajectories (HOME/nowhere) does not exist",
    ),
    "a teacher of other classes": (
        {
            "model": {
                "labels": {
                    **TEACHER,
                    "init_args": {**TEACHER["init_args"], "weights": "~/ten.safetensors"},
                }
            }
        },
        "for these classes",
    ),
    "no teacher": (
        {"evaluation": {"protocol": "rded-soft"}},
        "protocol rded-soft has the labels of a teacher for every crop, and there is none",
    ),
    "a budget beyond the set": (
        {"evaluation": {"budgets": [2]}},
        "budget 2: the set's classes have 1 images or more",
    ),
    "a baseline beyond the data": (
        {
            "evaluation": {
                "baselines": [
                    {"class_path": "ldd.evaluation.RandomReal", "init_args": {"images_per_class": 9}}
                ]
            }
        },
        "random_real_ipc9: images per class (9) is more than the 2 real images of class 'few'",
    ),
    "samples of no generator": ({"evaluation": {"baselines": "prior_samples"}}, "cannot sample"),
    "too few experts": (
        {
            "experts": {"num_experts": 1},
            "model": {
                "labels": {
                    "class_path": "ldd.evaluation.ExpertLabels",
                    "init_args": {"trajectories": "~/mine", "expert": 4, "epoch": 1},
                }
            },
        },
        "experts.num_experts (1) is less than the 5",
    ),
    "labels of experts that keep no statistics": (
        {
            "experts": {"num_experts": 1},
            "model": {
                "labels": {
                    "class_path": "ldd.evaluation.ExpertLabels",
                    "init_args": {
                        "trajectories": "~/mine",
                        "epoch": 1,
                        "network": {"class_path": "ldd.networks.ConvNet", "init_args": {"norm": "batch"}},
                    },
                }
            },
        },
        "labels.network (ConvNet) has batch normalisation, whose statistics expert",
    ),
    "a precision for no codes": (
        {"trainer": {"precision": "bf16-true"}},
        "trainer.precision (bf16-true) is not supported",
    ),
}


@pytest.mark.parametrize("case", FIT)
def test_fit(world, call, case):
    sections, text = FIT[case]
    run = world / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("the run that is there: true")
    few = ("--model.objective.real_batch", 2, "--evaluation.protocol", world / "small.yaml")
    code, said = call(
        *("fit", *PIXELS, *few, "--data=~/data.yaml", *settings(world, **sections)),
        *("--trainer.default_root_dir=~/run", "--overwrite", "true"),
    )
    assert code == 2, said
    assert text.replace("HOME", str(world)) in said
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml"]


def test_fit_finds_no_experts_to_match(world, call):
    match = ROOT / "configs" / "objective" / "trajectory.yaml"
    code, said = call(
        *("fit", *PIXELS[:4], "--data=~/data.yaml", "--model.objective", match),
        *("--model.objective.trajectories=~/nowhere", "--trainer.limit_val_batches", 0),
        "--trainer.default_root_dir=~/run",
    )
    assert code == 2, said
    assert f"objective.trajectories ({world}/nowhere) does not exist" in said
    assert not (world / "run").exists()


@pytest.mark.parametrize("kind", ["characteristic", "mmd"])
def test_fit_finds_batch_normalisation_before_it_records_experts(world, call, kind):
    objective = ROOT / "configs" / "objective" / f"{kind}.yaml"
    code, said = call(
        *(
            "fit",
            *PIXELS[:4],
            "--data=~/data.yaml",
            "--model.objective",
            objective,
            "--experts.num_experts",
            1,
        ),
        *("--model.objective.trajectories=~/mine", "--model.objective.network.norm", "batch"),
        *(
            "--model.objective.real_batch",
            2,
            "--trainer.limit_val_batches",
            0,
            "--trainer.default_root_dir=~/run",
        ),
    )
    assert code == 2, said
    assert "objective.network: batch normalisation would mix classes and ranks" in said
    assert not (world / "mine").exists()


@pytest.mark.parametrize(
    ("more", "text"), [(("--experts.momentum", 0.5), "momentum (0.5)"), ((), "num_experts (1)")]
)
def test_fit_finds_other_experts_than_it_would_record(world, pictures, call, more, text):
    listed = Listed(DistillationData(FolderSource, str(pictures), image_size=32))
    setting = ExpertSetting.of(listed.spec, listed.core_set, ConvNet(2, 32, width=128))
    training = ExpertTraining(3, 256, 0.01, 0.0, 0.0, tuple(OPERATIONS), 0)
    recording = Trajectories.under(world / "experts", setting, training, 2)
    recording.write_index()
    for expert in range(2):
        recording.write(expert, torch.zeros(4, setting.num_parameters), torch.zeros(3))
    code, said = call(
        *("fit", *PIXELS[:4], "--data=~/data.yaml", "--trainer.limit_val_batches", 0),
        *(
            "--model.objective",
            ROOT / "configs" / "objective" / "trajectory.yaml",
            "--experts.num_experts",
            1,
        ),
        *("--model.objective.trajectories=~/experts", "--trainer.default_root_dir=~/run", *more),
    )
    assert code == 2, said
    assert f"experts.{text}" in said
    assert str(recording.folder) in said
    assert not (world / "run").exists()


def test_a_pruner_leaves_open_which_images_there_will_be(world, call):
    """So experts of other images are no reason to refuse yet; that there are none is."""
    labels = {"class_path": "ldd.evaluation.ExpertLabels", "init_args": {"trajectories": "~/nowhere"}}
    code, said = call(
        *("fit", *PIXELS, "--data=~/data.yaml", *settings(world, model={"labels": labels})),
        *("--data.pruner", "ldd.data.RandomPruner", "--data.pruner.keep", 0.5),
        *("--model.objective.real_batch", 2, "--trainer.default_root_dir=~/run"),
    )
    assert code == 2, said
    assert f"labels.trajectories ({world}/nowhere) does not exist" in said


OLD = ROOT / "tests" / "data" / "1369bc3" / "dm"
DIGITS = (
    "--data", ROOT / "configs" / "data" / "digits.yaml", "--data.subset", '["digit-0", "digit-1", "digit-7"]',
)  # fmt: skip
OTHERS = ("--data", ROOT / "configs" / "data" / "digits.yaml", "--data.subset", '["digit-0", "digit-1"]')
NOWHERE = ("--labels", "ldd.evaluation.ExpertLabels", "--labels.trajectories=~/nowhere")
TEN = (
    *("--labels", "ldd.evaluation.NetworkLabels", "--labels.network", "ldd.networks.ConvNet"),
    *("--labels.network.width", 4, "--labels.network.depth", 2, "--labels.weights=~/ten.safetensors"),
)
NETWORK = ("--network", "ldd.networks.ConvNet", "--network.width", 4, "--network.depth", 2)
VERBS = {
    "evaluate without a teacher": (
        ["evaluate", OLD, *DIGITS, "--protocol", "rded-soft", "--baselines", "random_real", "--out=~/made"],
        "has the labels of a teacher for every crop, and there is none",
    ),
    "evaluate without experts": (
        ["evaluate", OLD, *DIGITS, "--protocol=~/small.yaml", *NOWHERE, "--out=~/made"],
        "labels.trajectories (HOME/nowhere) does not exist",
    ),
    "evaluate with a teacher of ten classes": (
        ["evaluate", OLD, *DIGITS, "--protocol", "rded-soft", *TEN, "--out=~/made"],
        "for these classes",
    ),
    "evaluate on other classes": (
        ["evaluate", OLD, *OTHERS, "--other_data", "true", "--out=~/made"],
        "class 2 of the set is digit-7 but None in the data",
    ),
    "evaluate a budget beyond the set": (
        ["evaluate", OLD, *DIGITS, "--protocol=~/small.yaml", "--budgets", "[7]", "--out=~/made"],
        "budget 7",
    ),
    "evaluate with soft labels of nobody": (
        [
            *("evaluate", OLD, *DIGITS, "--protocol=~/small.yaml"),
            *("--baselines", "random_real_soft", "--out=~/made"),
        ],
        "random_real_soft needs what labelled the distilled set",
    ),
    "label without experts": (
        ["label", OLD, *DIGITS, *NOWHERE, "--out=~/made"],
        "labels.trajectories (HOME/nowhere) does not exist",
    ),
    "label with a teacher of ten classes": (
        ["label", OLD, *DIGITS, *TEN, "--out=~/made"],
        "for these classes",
    ),
    "label by other data": (["label", OLD, *OTHERS, *TEN, "--out=~/made"], "class 2 of the set is digit-7"),
    "label-crops with a teacher of ten classes": (
        ["label-crops", OLD, *DIGITS, *TEN, "--out=~/made.safetensors"],
        "for these classes",
    ),
    "train without a teacher": (
        ["train", OLD, *DIGITS, *NETWORK, "--protocol", "rded-soft", "--out=~/made.safetensors"],
        "has the labels of a teacher for every crop, and there is none",
    ),
    "train with a teacher of ten classes": (
        ["train", OLD, *DIGITS, *NETWORK, "--protocol", "rded-soft", *TEN, "--out=~/made.safetensors"],
        "for these classes",
    ),
    "check without a teacher": (
        ["check", OLD, *DIGITS, "--protocol", "rded-soft", "--out=~/made"],
        "has the labels of a teacher for every crop, and there is none",
    ),
    "check with a classifier that has no linear end": (
        [
            *("check", OLD, *DIGITS, "--features.classifier", "resnet18"),
            *("--features.weights=~/ten.safetensors", "--out=~/made"),
        ],
        "are not of resnet18",
    ),
    "prune into a folder that is a file": (
        [
            *("prune", *DIGITS, "--pruner", "ldd.data.RandomPruner", "--pruner.keep", 0.5),
            *("--out=~/made.parquet", "--lists=~/small.yaml/lists"),
        ],
        "small.yaml/lists): Not a directory",
    ),
    "prior convert into a folder that is a file": (
        [
            *("prior", "convert", "~/ten.safetensors", "--config=~/small.yaml"),
            "--out=~/small.yaml/prior",
        ],
        "out (HOME/small.yaml): File exists",
    ),
    "prior train with a cache that is a file": (
        [
            *("prior", "train", "--config", ROOT / "configs" / "prior_training" / "digits.yaml"),
            *("--model.cache_dir=~/small.yaml", "--trainer.default_root_dir=~/run"),
        ],
        "model.cache_dir (HOME/small.yaml): File exists",
    ),
    "prior train with too few steps": (
        [
            *("prior", "train", "--config", ROOT / "configs" / "prior_training" / "digits.yaml"),
            *("--trainer.max_steps", 2, "--trainer.default_root_dir=~/run"),
        ],
        "trainer.max_steps=2 leaves no step for the denoiser",
    ),
}


@pytest.mark.parametrize("case", VERBS)
def test_verbs(world, call, case):
    words, text = VERBS[case]
    before = sorted(world.iterdir())
    code, said = call(*words)
    assert code == 2, said
    assert text.replace("HOME", str(world)) in said
    assert sorted(path for path in world.iterdir() if path.name != ".cache") == before


def test_a_federation_is_refused_before_its_first_sub_task(world, call, pictures):
    words = ["federate", *PIXELS, "--data=~/data.yaml", "--subtasks", 2, "--out=~/out"]
    code, said = call(*words, "--model.objective.real_batch", 3)
    assert code == 2, said
    assert "objective.real_batch (3) is more than the 2 real images of class 'few'" in said
    code, said = call(*words, "--model.objective.real_batch", 2, "--trainer.num_nodes", 2)
    assert code == 2, said
    assert "trainer.num_nodes (2): each sub-task runs on one machine" in said
    assert not (world / "out").exists()


def test_from_python_before_a_prior_is_trained(world, pictures):
    from ldd.errors import UserError
    from ldd.objectives import DistributionMatching
    from ldd.runs.distil import distil

    small = DistributionMatching(real_batch=2)

    for settings_of_run, text in (
        ({"images_per_class": 3}, "images_per_class \\(3\\) is more than the 2 real images"),
        ({"protocol": "rded-soft", "objective": small}, "has the labels of a teacher"),
        ({}, "objective.real_batch \\(32\\) is more than the 2"),
    ):
        with pytest.raises(UserError, match=text):
            distil(pictures, out=world / "run", **settings_of_run)
    assert not (world / "run").exists()
    shutil.rmtree(world / ".cache", ignore_errors=True)


def test_the_lists_are_those_that_are_decoded(pictures):
    from ldd.data import FolderSource
    from ldd.evaluation.ahead import Listed

    data = DistillationData(FolderSource, str(pictures), image_size=32)
    listed = Listed(data)
    data.setup()
    for split in ("train_images", "core_set", "selection_images", "test_images"):
        ours, theirs = getattr(listed, split), getattr(data, split)
        assert ours.keys == theirs.keys
        assert torch.equal(ours.labels, theirs.labels)
        assert not ours.images.any()
