"""What every evaluation compares with unless told otherwise: the baselines at equal budgets that can be had."""

import json
from dataclasses import replace

import pytest
import torch
from processes import run_ranks, torchrun_variables
from small_world import CLASSES, NARROW, SPEC, SmallData, protocol_file, small_set
from tiny_denoisers import ldm_pipeline
from torch import distributed

from ldd.artefact.size import Amount
from ldd.artefact.uploads import Sent
from ldd.commands.evaluate import evaluate as evaluate_command
from ldd.errors import UserError
from ldd.evaluation import (
    EqualBytes,
    EqualSteps,
    Labeller,
    PriorSamples,
    Protocol,
    RandomReal,
    Setting,
    SoftLabels,
    StoredSet,
    evaluate,
)
from ldd.evaluation.baselines.equal import baselines_by_name, chosen_baselines, equal_baselines
from ldd.images import ClassInfo, DataSpec
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, PixelPrior
from ldd.runtime.ranks import from_first_rank, this_rank
from ldd.students.training import fresh_network

REAL = ("random_real", "nearest_real", "easy_real")
FULL = ("full_real", "full_real_steps")
NO_PRIOR = "prior_samples needs the prior that the set was made through"


@pytest.fixture
def protocol(tmp_path):
    return Protocol.load(protocol_file(tmp_path, epochs=2))


@pytest.fixture
def labeller():
    return Labeller(fresh_network(NARROW, SPEC, 0, "t", 0).eval(), SPEC)


@pytest.fixture
def names(protocol):
    """`names(set, ...)`: those that can be had, and the reasons why others cannot."""

    def call(distilled, protocol=protocol, data=None, **rest):
        data = data or SmallData()
        data.setup()
        chosen, left_out = equal_baselines(distilled, Setting.of(distilled, data, 0, **rest), protocol)
        return [part.name for part in chosen], left_out

    return call


def forms(kinds, *endings):
    return {kind + ending for kind in kinds for ending in endings}


def as_digits(data):
    """The small world's images under the names of the tiny prior's first classes."""
    infos = [ClassInfo(info.label, info.id, f"digit-{info.label}", str(info.label)) for info in CLASSES]
    data.spec = DataSpec(infos, SPEC.image_size, SPEC.mean, SPEC.std, SPEC.fingerprint)
    return data


def of_digits(distilled):
    classes = as_digits(SmallData()).spec.classes
    return replace(distilled, manifest=distilled.manifest.replaced(classes=classes))


def test_hard_labels_and_a_prior_that_can_be_sampled(names, tiny_prior_path):
    """As many images are as many bytes and steps here; a prior whose chain has no steps can be sampled as well."""
    for num_steps in (2, 0):
        prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=num_steps)
        found, left_out = names(small_set(), data=as_digits(SmallData()), prior=prior)
        assert found == [*REAL, "prior_samples", *FULL]
        assert left_out == {}


def test_priors_that_cannot_be_sampled_for_these_classes(names, tiny_prior_path, tmp_path):
    ldm_pipeline().save_pretrained(tmp_path)
    unconditional = LatentDiffusionPrior(str(tmp_path), num_steps=2)
    diffusion = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    wrong_size = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2, image_size=64)
    for prior, data, reason in (
        (None, SmallData(), NO_PRIOR),
        (PixelPrior(32), SmallData(), "PixelPrior has no diffusion model and cannot sample"),
        (AutoencoderPrior(str(tiny_prior_path)), SmallData(), "has no diffusion model and cannot sample"),
        (diffusion, SmallData(), "the prior does not know the classes n0"),
        (unconditional, SmallData(), "samples of an unconditional one belong to none"),
        (wrong_size, as_digits(SmallData()), "are images of 64 px, and the data have 32 px"),
    ):
        found, left_out = names(small_set(), data=data, prior=prior)
        assert found == [*REAL, *FULL]
        assert list(left_out) == ["prior_samples"]
        assert reason in left_out["prior_samples"]
        data.setup()
        with pytest.raises(UserError, match=reason):  # by name it is refused
            PriorSamples().set_for(0, Setting.of(small_set(), data, 0, prior=prior))


def test_more_steps_than_the_prior_was_trained_with():
    """The prior is asked with the number of steps that will be taken."""

    class Short(torch.nn.Module):
        can_sample, image_size, latent_shape = True, 32, (1, 2, 2)

        def rows(self, classes):
            return torch.arange(3)

        def null(self, n):
            return torch.zeros(n, 1, 4)

        def decode(self, latents):
            return torch.zeros(len(latents), 3, 32, 32)

        def sample(self, rows, generator, *, num_steps, start, strength, **others):
            assert round(strength * num_steps) == 1
            if num_steps > 20:
                raise UserError(f"num_steps={num_steps} exceeds 20")
            return start

    setting = Setting.of(small_set(), SmallData(), 0, prior=Short())
    assert PriorSamples(num_steps=20).size(0, setting).images == 3
    with pytest.raises(UserError, match="num_steps=50 exceeds 20"):
        PriorSamples().size(0, setting)


def test_soft_labels(names, labeller, tmp_path):
    distilled = labeller.label(small_set(2))
    endings = ("", "_soft", "_bytes", "_bytes_steps", "_bytes_soft")
    found, left_out = names(distilled, labeller=labeller)
    assert set(found) == {*forms(REAL, *endings), *FULL}
    assert left_out.keys() == forms(["prior_samples"], *endings)
    found, left_out = names(distilled)  # nothing labels them
    assert set(found) == {*forms(REAL, "", "_bytes", "_bytes_steps"), *FULL}
    assert (
        "random_real_bytes_soft needs what labelled the distilled set" in left_out["random_real_bytes_soft"]
    )
    hard, _ = names(small_set(2), labeller=labeller)  # images with hard labels, and what labels others
    assert set(hard) == {*forms(REAL, "", "_soft", "_bytes_soft"), *FULL}
    teacher = Protocol.load(
        protocol_file(tmp_path, labels="teacher")
    )  # its labels take the place of all others
    found, _ = names(distilled, protocol=teacher, labeller=labeller)
    assert found == [*REAL, *FULL]
    beside = {"baselines": [EqualSteps(EqualBytes())], "labeller": labeller, "progress": False}
    with pytest.raises(UserError, match="random_real_bytes_steps count the bytes of the set's own labels"):
        evaluate(distilled, None, SmallData(), teacher, 1, **beside)


def test_codes_with_a_spread(names):
    latents = torch.zeros(6, 2, 1, 1)
    distilled = small_set(2, codes={"latents": latents, "log_variance": latents})
    assert distilled.is_distribution
    assert distilled.storage.total().bytes < 3 * 32 * 32  # two numbers of four bytes each
    found, left_out = names(distilled)
    assert found == [*REAL, *FULL]
    assert (
        "random_real_bytes has 144 bytes, which is less than one real image" in left_out["random_real_bytes"]
    )
    latents = torch.zeros(6, 1024, 1, 1)
    distilled = small_set(2, codes={"latents": latents, "log_variance": latents})
    found, left_out = names(distilled)
    assert set(found) == {*forms(REAL, "", "_bytes", "_bytes_steps"), *FULL}
    assert all(NO_PRIOR in reason for reason in left_out.values())


def products(images_per_class):
    """Images as products of 3 x (2 x 3 x 64 + 2 x 5 x 32 x 8 + 5 x 9) numbers: 35,868 bytes, as 11.6 images take."""
    shapes = {"small": (2, 3, 8, 8), "left": (5, 32, 8), "right": (5, 32, 8), "mixing": (5, 3, 3)}
    return small_set(images_per_class, codes={name: torch.zeros(3, *shape) for name, shape in shapes.items()})


def upload(images_per_class):
    """Latents that were sent in 7,000 bytes."""
    distilled = small_set(images_per_class, codes={"latents": torch.zeros(3 * images_per_class, 4, 4, 4)})
    sent = Sent(3 * images_per_class, Amount(3 * images_per_class * 64, 7000), Amount(), Amount(0, 100))
    return distilled.with_facts(sent=sent)


@pytest.mark.parametrize(
    ("distilled", "bytes_of_it", "batch_size", "endings"),
    [
        (small_set(4), 12 * 3080, 4, ("",)),
        (small_set(4, weights=torch.ones(12)), 12 * 3084, 4, ("", "_bytes", "_bytes_steps")),
        (small_set(4, packing=2), 12 * 3080, 16, ("", "_steps")),  # 48 small images are 3 batches, 12 are one
        (small_set(4, packing=2), 12 * 3080, 48, ("",)),
        (products(4), 3 * (384 + 2560 + 45) * 4 + 12 * 8, 4, ("", "_bytes", "_bytes_steps")),
        (products(6), 3 * (384 + 2560 + 45) * 4 + 18 * 8, 4, ("", "_bytes", "_bytes_steps")),
        (upload(4), 7100, 4, ("", "_bytes", "_bytes_steps")),
    ],
)
def test_forms_where_bytes_or_steps_differ_from_those_of_as_many_images(
    names, tmp_path, distilled, bytes_of_it, batch_size, endings
):
    """One baseline stands for another budget only where the figures say so, whatever kind of set it is."""
    assert distilled.storage.total().bytes == bytes_of_it
    protocol = Protocol.load(protocol_file(tmp_path, batch_size=batch_size))
    found, left_out = names(distilled, protocol=protocol)
    assert set(found) == {*forms(REAL, *endings), *FULL}
    assert left_out.keys() == forms(["prior_samples"], *endings)
    settings = {"networks": {"narrow": NARROW}, "repeats": 1, "num_workers": 1, "progress": False}
    report = evaluate(distilled, data=SmallData(), protocol=protocol, **settings)
    units, cost = report.units(), report.facts["cost"]
    own = cost["distilled"]["training"]["steps"]
    for kind in REAL:
        assert (units[kind].bytes == units["distilled"].bytes) == ("_bytes" not in endings)
        assert (cost[kind]["training"]["steps"] == own) == ("_steps" not in endings)
        for ending in endings:
            if ending.endswith("_steps"):
                assert cost[kind + ending]["training"]["steps"] == pytest.approx(own, rel=0.25)


def test_steps_of_draws_with_means_and_of_a_teacher(names, labeller, tmp_path):
    """Means join the draws of a spread: twice as many images an epoch. A teacher's crops leave equal steps alone."""
    latents = torch.zeros(6, 1024, 1, 1)
    distilled = small_set(2, codes={"latents": latents, "log_variance": latents})
    for means, endings in (
        ("always", ("", "_steps", "_bytes", "_bytes_steps")),
        ("never", ("", "_bytes", "_bytes_steps")),
    ):
        found, _ = names(
            distilled, protocol=Protocol.load(protocol_file(tmp_path, batch_size=6, mean_images=means))
        )
        assert set(found) == {*forms(REAL, *endings), *FULL}
    teacher = Protocol.load(protocol_file(tmp_path, labels="teacher", batch_size=12))
    found, _ = names(small_set(4, packing=2), protocol=teacher, labeller=labeller)
    assert set(found) == {*forms(REAL, "", "_steps"), *FULL}


def test_a_class_with_too_few_real_images(names):
    class Scarce(SmallData):
        def setup(self, stage=None):
            super().setup()
            self.train_images = self.train_images.select(torch.arange(23))  # 8, 8 and 7

    distilled = small_set(8)
    found, left_out = names(distilled, data=Scarce())
    assert found == [*FULL]
    reason = "images per class (8) is more than the 7 real images of class 2"
    assert all(f"{name}: {reason}" in left_out[name] for name in REAL)
    latents = torch.zeros(24, 1024, 1, 1)
    distribution = small_set(8, codes={"latents": latents, "log_variance": latents})
    found, _ = names(distribution, data=Scarce())  # its bytes pay for all there are
    assert set(found) == {*forms(REAL, "_bytes", "_bytes_steps"), *FULL}


def test_a_whole_evaluation_of_all_of_them(labeller, protocol, tmp_path):
    """No argument is needed; what is left out is written, with the reason."""
    distilled = labeller.label(small_set(2))
    settings = {"labeller": labeller, "num_workers": 1, "progress": False}
    report = evaluate(distilled, None, SmallData(), protocol, 1, **settings)
    report.write(tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    own, endings = {"distilled", "distilled_hard"}, ("", "_soft", "_bytes", "_bytes_steps", "_bytes_soft")
    assert set(written["accuracy"]) == own | forms(REAL, *endings) | {*FULL}
    assert written["left_out"].keys() == forms(["prior_samples"], *endings)
    assert (
        "left_out" not in evaluate(distilled, None, SmallData(), protocol, 1, baselines=[], **settings).facts
    )


def test_the_command_takes_the_prior_that_the_set_names(tmp_path, tiny_prior_path, capsys):
    def compare(name, prior, **settings):
        config = {"model": {"prior": {"class_path": "ldd.priors.LatentDiffusionPrior", "init_args": prior}}}
        distilled = of_digits(small_set(config=config))
        distilled.save(tmp_path / name)
        out = tmp_path / f"{name}-out"
        short = {"protocol": protocol_file(tmp_path, epochs=2), "repeats": 1, "num_workers": 1}
        evaluate_command(str(tmp_path / name), as_digits(SmallData()), str(out), **short | settings)
        return json.loads((out / "evaluation.json").read_text())

    (tmp_path / tiny_prior_path.name).symlink_to(tiny_prior_path)  # the manifest tells its name alone
    found = compare("known", {"path_or_hub_id": str(tiny_prior_path), "num_steps": 2})
    assert set(found["accuracy"]) == {"distilled", *REAL, "prior_samples", *FULL}
    assert "left out" not in capsys.readouterr().out
    gone = {"path_or_hub_id": str(tmp_path / "gone"), "num_steps": 2}
    found = compare("unknown", gone)
    assert set(found["accuracy"]) == {"distilled", *REAL, *FULL}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line.startswith("prior_samples is left out: ")
    assert NO_PRIOR in found["left_out"]["prior_samples"]
    with pytest.raises(UserError, match="no such folder"):
        compare("named", gone, baselines="prior_samples")
    found = compare("mixed", gone, baselines="equal,random_real_steps")
    assert set(found["accuracy"]) == {"distilled", *REAL, *FULL, "random_real_steps"}


@pytest.mark.parametrize(
    "name", ["os.abort", "small_world:small_set", "ldd.evaluation.Baseline", "ldd.evaluation"]
)
def test_only_classes_of_baselines_are_called(name, monkeypatch):
    def called(*_):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr("os.abort", called)
    monkeypatch.setattr("small_world.small_set", called)
    with pytest.raises(UserError, match=f"'{name}' is unknown"):
        baselines_by_name(name)
    (found,) = baselines_by_name("ldd.evaluation.RandomReal")
    assert isinstance(found, RandomReal)


def test_images_are_made_once_for_all_their_forms(labeller, monkeypatch):
    data, picked = SmallData(), []
    data.setup()
    honest = RandomReal.pick
    monkeypatch.setattr(
        RandomReal, "pick", lambda self, *rest: picked.append(rest[-1]) or honest(self, *rest)
    )
    distilled = labeller.label(small_set(2))
    setting = Setting.of(distilled, data, 0, labeller=labeller)
    chosen, _ = equal_baselines(distilled, setting, Protocol.load("quick"))
    for part in chosen:
        if part.name.startswith("random_real"):
            setting.made(part, 0)
    assert len(picked) == 3  # for the number of images, for the bytes, and for the bytes with soft labels


def test_sizes_are_known_before_the_sets(labeller):
    data = SmallData()
    data.setup()
    distilled = labeller.label(small_set(2))
    setting = Setting.of(distilled, data, 0, labeller=labeller)
    for part in equal_baselines(distilled, setting, Protocol.load("quick"))[0]:
        assert part.size(1, setting) == setting.made(part, 1).size, part.name
    assert SoftLabels(EqualBytes()).size(0, setting).soft
    own = StoredSet("own", distilled, samples=distilled.images[None].expand(4, -1, -1, -1, -1))
    assert own.size(0, setting) == setting.made(own, 0).size == (6, 4, True, False)


def told_by_the_first():
    """What each rank has of a value that is another one on each."""
    distributed.init_process_group("gloo")
    return from_first_rank(torch.full((2,), float(this_rank()[0]))).tolist()


def test_all_ranks_have_the_first_ones_values():
    assert run_ranks(told_by_the_first, environments=torchrun_variables(2)) == [[0.0, 0.0]] * 2
    assert from_first_rank(torch.ones(1)).tolist() == [1.0]


@pytest.mark.parametrize("none", ["", "none", "[]", " none "])
def test_no_baselines_are_said_as_a_user_would(none):
    assert baselines_by_name(none) == ()
    assert chosen_baselines(none) == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "[{class_path: ldd.evaluation.CompressedReal, init_args: {images_per_class: 3, quality: high}}]",
            'class_path .*CompressedReal.*"quality": Expected a .*int.* Got value: high',
        ),
        ("[{class_path: ldd.evaluation.CompressedReel}]", "has no attribute 'CompressedReel'"),
        (" [{class_path: ldd.evaluation.EncodedReal, init_args: {}}]", "required: images_per_class"),
        ("[{class_path: ldd.evaluation.FullReal, init_args: {seed: 1}}]", "Option 'seed' is not accepted"),
        ("[{class_path: ldd.evaluation.FullReal}", "Expected a .*list"),
        ("{class_path: ldd.evaluation.FullReal}", "Expected a .*list"),
        ("[{class_path: ldd.evaluation.FullReal}]", "give what is written in it"),
    ],
)
def test_a_list_that_cannot_be_read_is_told_why(text, why):
    """A command line takes it for names then, where a list and text are both taken."""
    with pytest.raises(UserError, match=f"^baselines(?!.*is unknown; choose).*{why}"):
        chosen_baselines(text)


def test_a_setting_takes_names_as_well_as_classes():
    named = chosen_baselines("random_real, full_real_steps")
    assert [baseline.name for baseline in named] == ["random_real", "full_real_steps"]
    assert chosen_baselines([RandomReal()])[0].name == "random_real"
    assert chosen_baselines(None) is chosen_baselines("equal") is None
    with pytest.raises(UserError, match="give it alone"):
        chosen_baselines("equal,random_real")
    with pytest.raises(UserError, match="'random' is unknown"):
        chosen_baselines("random")
