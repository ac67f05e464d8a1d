"""Which equal baselines a run's evaluation lacks, and the command that adds them, as the page says it."""

import shlex

import pytest
import torch
import yaml
from small_world import small_set

from ldd import cli
from ldd.commands import plain
from ldd.errors import UserError
from ldd.evaluation import Report, Row
from ldd.report import read_runs
from ldd.report.lacking import lacking
from tests.report.test_page import Reader

LABELS = {"class_path": "ldd.evaluation.ExpertLabels", "init_args": {"trajectories": "experts", "epoch": 2}}
NETWORKS = {"mine": {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4}}}
REAL = ["random_real", "nearest_real", "easy_real"]
FULL = ["full_real", "full_real_steps"]


@pytest.fixture
def run(tmp_path):
    """`run([sets], ...)`: a run whose evaluation has these sets."""

    def call(sets, distilled=None, facts=None, networks=("mine",), protocols=("small",), **config):
        folder = tmp_path / "a run"
        distilled = small_set() if distilled is None else distilled
        distilled = distilled.with_facts(config={"data": {"root": None}, **config})
        distilled.save(folder / "distilled")
        rows = tuple(
            Row(0, name, network, True, repeat, 7, 0.5, 1.0, protocol)
            for protocol in protocols
            for name in ["distilled", *sets]
            for network in networks
            for repeat in range(2)
        )
        Report(rows, dict.fromkeys(protocols, "h" * 16), facts or {}).write(folder)
        return read_runs([str(folder)])[0]

    return call


def soft_set(**facts):
    return small_set(soft_labels=torch.full((3, 3), 1 / 3).half(), **facts)


def test_names_and_command(run, tmp_path):
    (found,) = lacking(run(["random_real"]))
    missing = "nearest_real, easy_real, full_real and full_real_steps"
    assert found.sentence == f"a run, protocol small: {missing} are missing for an equal comparison."
    folder = shlex.quote(str(tmp_path / "a run"))
    assert found.command == (
        f"latentdd evaluate {folder} --data data.yaml --protocol PROTOCOL.yaml --repeats 2 --seed 7 "
        f"--baselines nearest_real,easy_real,full_real,full_real_steps --out {folder}"
    )
    assert yaml.safe_load(found.files["data.yaml"]) == {"root": None}
    assert found.notes == (
        f"PROTOCOL.yaml: the file of protocol small (hash {'h' * 16}), which is not in the run's folder.",
    )
    (found,) = lacking(run([*REAL, "full_real"]))
    assert found.sentence == "a run, protocol small: full_real_steps is missing for an equal comparison."


def test_nothing_where_all_are_there(run):
    assert lacking(run([*REAL, *FULL])) == []


def test_one_for_each_protocol(run):
    found = lacking(run(["random_real"], protocols=("small", "large")))
    assert [one.sentence.partition(":")[0] for one in found] == [
        "a run, protocol small",
        "a run, protocol large",
    ]
    assert "the file of protocol large" in found[1].notes[0]


def test_soft_labels_and_the_networks_of_the_run(run):
    settings = {"model": {"labels": LABELS}, "evaluation": {"networks": NETWORKS}}
    forms = [real + end for end in ("", "_soft", "_bytes", "_bytes_steps") for real in REAL]
    (found,) = lacking(run(["distilled_hard", *forms, *FULL], soft_set(), **settings))
    missing = "random_real_bytes_soft, nearest_real_bytes_soft and easy_real_bytes_soft are missing"
    assert missing in found.sentence
    assert yaml.safe_load(found.files["labels.yaml"]) == LABELS
    assert "--labels labels.yaml" in found.command
    words = shlex.split(found.command)
    assert yaml.safe_load(words[words.index("--networks") + 1]) == NETWORKS
    (found,) = lacking(run(["distilled_hard", *forms, *FULL], soft_set(), networks=("other",)))
    assert "--networks" not in found.command
    assert "--labels LABELS.yaml" in found.command  # whose labels they are is not known
    assert "labels.yaml" not in found.files
    # Where no student learned from the set's own labels, those of other images would change nothing.
    hard = [name for name in forms if not name.endswith("_soft")]
    assert lacking(run([*hard, *FULL], soft_set())) == []


def test_what_could_not_be_had_is_not_asked_for(run):
    conditions = {"conditioning": torch.zeros(3, 1, 2), "latents": torch.zeros(3, 1)}
    (found,) = lacking(run([*REAL, *FULL], small_set(codes=conditions)))
    assert "--baselines prior_samples " in found.command
    left_out = {"prior_samples": "the prior does not know the classes"}
    assert lacking(run([*REAL, *FULL], small_set(codes=conditions), {"left_out": left_out})) == []
    left_out = dict.fromkeys(["easy_real", "easy_real_soft", "random_real_soft"], "why")
    forms = [real + end for end in ("", "_bytes", "_bytes_steps", "_bytes_soft") for real in REAL]
    sets = ["distilled_hard", *forms, "nearest_real_soft", *FULL]
    sets.remove("easy_real")
    (found,) = lacking(run(sets, soft_set(), {"left_out": left_out}))
    assert "--baselines random_real_soft " in found.command  # which needs the labels alone
    tiny = {"latents": torch.zeros(3, 2), "log_variance": torch.zeros(3, 2)}
    assert lacking(run([*REAL, *FULL], small_set(codes=tiny))) == []  # less than the bytes of one image


def test_the_command_is_one(run, monkeypatch):
    """`latentdd evaluate` parses it, with the files that the page shows."""
    settings = {"model": {"labels": LABELS}, "evaluation": {"networks": NETWORKS}}
    (found,) = lacking(run(["distilled_hard"], soft_set(), **settings))
    folder = run(["distilled_hard"], soft_set(), **settings).folder
    monkeypatch.chdir(folder.parent)
    for name, content in found.files.items():
        (folder.parent / name).write_text(content)
    parsed = []

    def keep(parser, options):
        parsed.append(options)
        raise UserError("parsed")

    monkeypatch.setattr(plain.ArgumentParser, "instantiate_classes", keep)
    assert cli.main(shlex.split(found.command)[1:]) == 2
    (options,) = parsed
    assert (options.path, options.out, options.repeats, options.seed) == (str(folder), str(folder), 2, 7)
    assert options.networks["mine"].init_args.width == 4
    assert options.labels.init_args.epoch == 2
    assert options.baselines.split(",")[:4] == [*REAL, "random_real_soft"]


def test_on_the_page(run, tmp_path):
    def page(sets):
        folder = run(sets, model={}).folder
        assert cli.main(["report", str(folder), "--out", str(tmp_path / "page.html"), "--overwrite"]) == 0
        return Reader((tmp_path / "page.html").read_text()).text

    text = page(["random_real"])
    (found,) = lacking(run(["random_real"], model={}))
    assert any(found.sentence in part for part in text["p"])
    assert found.command in text["pre"]
    assert found.files["data.yaml"] in text["pre"]
    assert not any("missing for an equal comparison" in part for part in page([*REAL, *FULL])["p"])
