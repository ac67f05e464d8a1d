"""`latentdd prior compare`: its figures against those of other verbs, resumption, settings of each prior, refusals."""

import json
import shutil

import pytest
import torch
import yaml
from endings import check_ending
from parsers import parser_of
from PIL import Image
from pruning_cases import write_folder
from safetensors.torch import save_file
from small_world import protocol_file
from tiny_denoisers import ldm_pipeline

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData, FolderSource
from ldd.distiller.memory import kept_mib
from ldd.distiller.module import Distiller
from ldd.evaluation import RandomReal, evaluate
from ldd.evaluation.checks.spread import spread_of
from ldd.evaluation.features import trained_features
from ldd.prior_comparison import comparing, figures
from ldd.prior_comparison.candidates import read_candidates
from ldd.prior_comparison.showing import picture
from ldd.priors import LatentDiffusionPrior
from ldd.runs.command_line import DistillationCLI

CLASSES = {"digit-0": 12, "digit-1": 12, "digit-7": 12}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_prior_folder):
    """Images, a protocol, a prior of many steps and one of one."""
    folder = tmp_path_factory.mktemp("world")
    write_folder(folder / "images", CLASSES)
    protocol_file(folder)
    tiny_prior_folder(folder / "many" / "prior")
    tiny_prior_folder(folder / "one", one_step=True)
    settings = {"path_or_hub_id": str(folder / "many" / "prior"), "num_steps": 2, "guidance_scale": 1.5}
    component = {"class_path": "ldd.priors.LatentDiffusionPrior", "init_args": settings}
    (folder / "short.yaml").write_text(yaml.safe_dump(component))
    return folder


def words(world, out, *priors):
    return [
        *("prior", "compare", *map(str, priors or (world / "short.yaml", world / "one"))),
        *("--data.source", "ldd.data.FolderSource", "--data.root", str(world / "images")),
        *("--protocol", str(world / "small.yaml"), "--images_per_class", "3,1", "--repeats", "2"),
        *("--num_workers", "1", "--out", str(out)),
    ]


def run(arguments):
    try:
        return cli.main(list(map(str, arguments)))
    except SystemExit as end:  # the parser's own
        return end.code


def data_of(world):
    data = DistillationData(FolderSource, str(world / "images"))
    data.setup()
    return data


def without_costs(found):
    """What must be the same however often a comparison was stopped."""
    for one in found["priors"].values():
        for part in ("sampling", "step"):
            for name in ("seconds", "cpu_seconds", "checkpointed"):
                one[part].pop(name, None)
    return found


@pytest.fixture(scope="module", autouse=True)
def _timed_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_REPETITIONS", 1)
        yield


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    """Folder of a comparison, and what it printed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch, (out.parent / "said").open("w+") as said:
        patch.setattr("sys.stdout", said)
        assert run(words(world, out)) == 0
        said.seek(0)
        printed = said.read()
    return out, json.loads((out / "comparison.json").read_text()), printed


def test_each_prior_has_steps_and_guidance_of_its_own(compared):
    _, found, _ = compared
    short, one = found["priors"]["short"], found["priors"]["one"]
    for part in ("sampling", "step"):
        assert (short[part]["num_steps"], short[part]["guidance_scale"]) == (2, 1.5)
        assert (one[part]["num_steps"], one[part]["guidance_scale"]) == (1, 1.0)
    assert short["step"]["learned"] == ["latents", "conditioning"]
    assert one["step"]["learned"] == ["conditioning", "noise"]


def test_samples_and_accuracies_are_those_of_the_verbs_alone(world, compared, tmp_path):
    """`prior sample` draws the same set, and `evaluate` gives the same accuracies of it and of random real images."""
    out, found, _ = compared
    options = ("--data.source", "ldd.data.FolderSource", "--data.root", world / "images", "--per-class", 3)
    assert run(("prior", "sample", world / "one", *options, "--out", tmp_path / "set")) == 0
    alone = DistilledSet.load(tmp_path / "set")
    assert torch.equal(alone.images, DistilledSet.load(out / "priors" / "one" / "samples").images)
    given = {"protocol": str(world / "small.yaml"), "repeats": 2, "num_workers": 1, "progress": False}
    report = evaluate(alone, None, data_of(world), baselines=[RandomReal()], budgets=[1], **given)
    for name, of in (("distilled", found["priors"]["one"]), ("random_real", found["random_real"])):
        for budget, ending in ((1, "_ipc1"), (3, "")):
            score = report.scores()[name + ending]["narrow"]
            shown = of["accuracy"][str(budget)]
            assert shown["networks"] == {"narrow": {"mean": score.mean, "std": score.std, "n": 2}}
            assert shown["mean"]["mean"] == pytest.approx(score.mean, abs=1e-12)


def test_density_and_coverage_are_those_of_the_paper(world, compared):
    """Naeem et al., equations 3 and 4, by loops over the features of a network trained here once more."""
    out, found, _ = compared
    data = data_of(world)
    features = trained_features(data.train_images, data.spec, 0, torch.device("cpu"))
    samples = DistilledSet.load(out / "priors" / "short" / "samples")
    own, real, truth = features(samples.images), features(data.train_images.images), data.train_images.labels
    covered, inside = [], 0
    for i, centre in enumerate(real):
        peers = sorted(
            float((centre - real[j]).norm()) for j in range(len(real)) if j != i and truth[j] == truth[i]
        )
        held = [
            n for n in range(len(own))
            if samples.labels[n] == truth[i] and float((own[n] - centre).norm()) < peers[4]
        ]  # fmt: skip
        covered.append(bool(held))
        inside += len(held)
    likeness = found["priors"]["short"]["likeness"]
    assert likeness["coverage"] == pytest.approx(sum(covered) / len(covered), abs=1e-6)
    assert likeness["density"] == pytest.approx(inside / 5 / len(own), abs=1e-6)
    assert likeness["features"] == features.name
    drawn = data.train_images.draw_set([3] * 3, "images", 0, "random real", 0)
    spread = spread_of(features(drawn.images), drawn.labels, real, truth)
    assert found["random_real"]["likeness"]["coverage"] == pytest.approx(spread.coverage, abs=1e-6)


def test_a_step_keeps_the_graph_of_its_own_calls(world, compared):
    """Two guided calls keep more than one call without guidance; the decoder's part is the same."""
    _, found, _ = compared
    of = {name: one["step"] for name, one in found["priors"].items()}
    prior = LatentDiffusionPrior(str(world / "one"))
    decoder = kept_mib(
        lambda: prior.decode(torch.zeros(1, *prior.latent_shape, requires_grad=True)), prior.parameters()
    )
    assert 0 < decoder < of["one"]["kept_mib"] < of["short"]["kept_mib"]
    assert of["short"]["kept_mib"] - decoder > 3 * (of["one"]["kept_mib"] - decoder)
    assert all(one["peak_mib"] > one["kept_mib"] and one["seconds"] > 0 for one in of.values())


def test_what_is_written_and_said(world, compared):
    out, found, printed = compared
    table = (out / "comparison.md").read_text()
    assert table.startswith(
        "**Priors on 36 test images, protocol small**\n\n| prior | test images | steps | "
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["prior", "---", "short", "one", "random_real"]
    assert rows[2][1:4] == ["unknown", "2 / 2", "1.5 / 1.5"]
    score = found["priors"]["one"]["accuracy"]["3"]["mean"]
    assert rows[0][-5::2] == ["CPU s a sample", "CPU s a step", "MiB kept an image"]
    assert rows[3][-3] == f"{found['priors']['one']['step']['cpu_seconds']:.3g}"
    assert rows[3][5] == f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f}"
    assert Image.open(out / "comparison.png").size[0] > 1000
    assert json.loads((out / "commands.json").read_text())[0]["verb"] == "prior"
    assert str(world) not in (out / "comparison.json").read_text()
    check_ending(words(world, out), printed, parser_of(DistillationCLI, Distiller, "runs/default"), out)


def test_the_picture_shows_the_figures(compared, world, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        "ldd.commands.prior.compare.write", lambda found, classes, folder: drawn.append(found) or []
    )
    assert run(words(world, compared[0])) == 0
    axes = picture(drawn[0], data_of(world).spec.classes).axes[0]
    points = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() in ("o", "s")}
    expected = {
        (one["step"]["cpu_seconds"], 100 * one["accuracy"][budget]["mean"]["mean"])
        for one in compared[1]["priors"].values()
        for budget in ("1", "3")
    }
    assert {tuple(round(float(v), 9) for v in point) for point in points} == {
        tuple(round(v, 9) for v in point) for point in expected
    }


def test_a_stopped_comparison_goes_on(world, compared, tmp_path, monkeypatch):
    """Stopped after the first prior's samples and figures, and again after its students; neither is made twice."""
    out = tmp_path / "out"
    original = comparing.compare

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "compare", stop)
    assert run(words(world, out)) == 130
    kept = (out / "priors" / "short" / "figures.json").read_bytes()
    assert not (out / "comparison.json").exists()
    monkeypatch.setattr(comparing, "compare", original)
    sample = comparing.sampled_set

    def second_alone(prior, *others):
        assert prior.schedule.of_intervals, "the samples of the first prior are there"
        return sample(prior, *others)

    monkeypatch.setattr(comparing, "sampled_set", second_alone)
    assert run(words(world, out)) == 0
    assert (out / "priors" / "short" / "figures.json").read_bytes() == kept
    again = without_costs(json.loads((out / "comparison.json").read_text()))
    whole = without_costs(json.loads((compared[0] / "comparison.json").read_text()))
    assert again == whole


def test_priors_join_in_and_others_do_not(world, compared, tmp_path, capsys, tiny_prior_folder):
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    for changed, said in (
        (("--repeats", 3), "repeats then 2, now 3"),
        (("--seed", 1), "seed then 0, now 1"),
        (("--images_per_class", "1,2"), "images_per_class then [1, 3], now [1, 2]"),
    ):
        assert run((*words(world, out, world / "one"), *changed)) == 2
        assert said in (shown := capsys.readouterr().err)
        assert f"give --out another folder than {out}, or delete it" in shown
    other = tiny_prior_folder(tmp_path / "other", seed=4, one_step=True)
    assert run(words(world, out, f"one={other}")) == 2
    assert "PRIOR one has other weights or settings" in capsys.readouterr().err
    assert run(words(world, out, f"another={other}")) == 0
    assert {path.name for path in (out / "priors").iterdir()} == {"short", "one", "another"}
    assert [*json.loads((out / "comparison.json").read_text())["priors"]] == ["another"]


def test_what_cannot_be_used_is_refused_before_any_work(
    world, tmp_path, capsys, monkeypatch, tiny_prior_folder
):
    ldm_pipeline().save_pretrained(tmp_path / "unconditional")
    (tmp_path / "pixel.yaml").write_text(
        yaml.safe_dump({"class_path": "ldd.priors.PixelPrior", "init_args": {"image_size": 32}})
    )
    other = tiny_prior_folder(tmp_path / "of_others")
    card = json.loads((other / "prior.json").read_text())
    for info in card["classes"]:
        info |= {"wnid": f"x{info['id']}", "name": f"thing {info['id']}"}
    (other / "prior.json").write_text(json.dumps(card))
    out = tmp_path / "out"
    for priors, more, said in (
        (["nowhere"], (), "PRIOR nowhere (nowhere): path_or_hub_id='nowhere': no such folder"),
        (["nowhere.yaml"], (), "PRIOR (nowhere.yaml) does not exist"),
        (["embedded:digit"], (), "did you mean embedded:digits?"),
        ([other], (), "the prior does not know the classes digit-0"),
        ([tmp_path / "unconditional"], (), "samples of an unconditional prior belong to no class"),
        ([tmp_path / "pixel.yaml"], (), "is a ldd.priors.PixelPrior, which has no diffusion model"),
        ([world / "one"], ("--data.image_size", 34), "image_size=34"),
        (
            [world / "one", world / "one"],
            (),
            "would be called one, as another row of the table is; name it: NAME=",
        ),
        ([f"random_real={world / 'one'}"], (), "would be called random_real"),
        (
            [world / "one"],
            ("--images_per_class", "10,ten"),
            "images_per_class (10,ten) must be different numbers",
        ),
        ([world / "one"], ("--images_per_class", "3,3"), "images_per_class (3,3) must be"),
        ([world / "one"], ("--images_per_class", "50"), "is more than the"),
        ([world / "one"], ("--protocol", "none-such"), "none-such"),
        ([world / "one"], ("--repeats", 0), "repeats (0) must be at least 1"),
    ):
        assert run((*words(world, out, *priors), *more)) == 2, said
        assert said in capsys.readouterr().err
        assert not out.exists(), said


def test_names(tmp_path):
    (tmp_path / "a=b").mkdir()
    given = {
        "embedded:digits": "digits",
        "configs/prior/sd_turbo.yaml": "sd_turbo",
        "mine=embedded:digits": "mine",
        "runs/x/prior": "x",
        "hf://user/model-2@v1": "model-2",
        "user/model_3": "model_3",
        f"{tmp_path}/a=b": "a-b",
    }
    assert [one.name for one in read_candidates(list(given))] == list(given.values())
    turbo = read_candidates(["configs/prior/sd_turbo.yaml"])[0].settings
    assert turbo["path_or_hub_id"] == "stabilityai/sd-turbo"
    assert (turbo["num_steps"], turbo["guidance_scale"]) == (1, 1.0)
    assert "skip" not in turbo, "it is the default"


def test_whether_a_prior_has_seen_the_test_images(world, tmp_path, tiny_prior_folder):
    folder, data = tiny_prior_folder(tmp_path / "prior"), data_of(world)
    (one,) = read_candidates([str(folder)])

    def stated(**data_of_card):
        card = json.loads((folder / "prior.json").read_text())
        (folder / "prior.json").write_text(json.dumps({**card, **data_of_card}))
        return one.test_images(data)[0]

    assert stated() == "unknown"
    card = folder / "README.md"
    card.write_text("the training split only; the test split left out has fingerprint " + "0" * 32)
    assert stated() == "unknown"
    card.write_text(
        f"the training split only; the test split left out has fingerprint {data.spec.fingerprint}"
    )
    assert stated() == "left out"
    card.unlink()
    assert stated(data={**data.fingerprints, "test": "0" * 32}) == "unknown"
    assert stated(data=dict(data.fingerprints)) == "left out"
    save_file({"images": data.contents_of("train")}, folder / "learned.safetensors")
    assert stated() == "left out"
    some = torch.cat([data.contents_of("train"), data.contents_of("test")[3:8]])
    save_file({"images": some}, folder / "learned.safetensors")
    assert stated() == "learned 5 of 36"
