"""Files that others wrote, with anything in any place: a UserError or a right result, never a crash."""

import json
import math
import os
import struct
import sys
from contextlib import suppress
from functools import partial
from inspect import signature

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hostile import KINDS, SEEN, Maker, watch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from jsonargparse import ArgumentError, ArgumentParser
from pruning_cases import table_of
from safetensors.torch import save_file
from small_world import protocol_content
from tiny_set import full_set

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture, Export, LastCheckpoints, Preview
from ldd.data import DistillationData, ScoreTable
from ldd.disk.files import read_json, read_tensors, read_yaml, sha256
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.evaluation import Protocol, Report
from ldd.experts.recording import record_experts
from ldd.experts.trajectories import Trajectories
from ldd.images import DataSpec
from ldd.networks import ConvNet
from ldd.objectives import Objective
from ldd.priors import PixelPrior
from ldd.priors.folder import read_card
from ldd.priors.loading import load_tensor
from ldd.runs.options import refuse_nulls
from ldd.runs.verb import guard_yaml

fuzz = settings(
    max_examples=50,
    derandomize=True,  # one suite, one verdict; widen it by hand
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**63, 2**70])
FLOATS = st.sampled_from([-1.0, 0.0, 0.5, 1.5, 1e300, -1e300])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def replaced(draw, tree, value):
    """`tree` with `value` in some place, or without some key."""
    tree = json.loads(json.dumps(tree))
    node = tree
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            break
        node = node[key]
    if draw(st.integers(0, 4)):
        node[key] = value
    else:
        del node[key]
    return tree


# safetensors


def split_header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


HEADER_VALUES = (
    JSON
    | st.sampled_from(["F16", "F32", "F64", "I8", "I32", "I64", "U8", "BOOL", "BF16", "F8_E4M3", "C64"])
    | st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 16, 64, 2**40]), min_size=1, max_size=4)
)


def rewritten(draw, path, header, body):
    """The file with another header, or another length of it, or cut."""
    changed = json.dumps(replaced(draw, header, draw(HEADER_VALUES))).encode()
    length = draw(st.sampled_from([len(changed)] * 6 + [0, 1, len(changed) + 1, 2**31, 2**63]))
    whole = struct.pack("<Q", length) + changed + body
    path.write_bytes(whole[: draw(st.sampled_from([len(whole)] * 6 + [0, 7, 8, 20, len(whole) - 1]))])


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    save_file({"weight": torch.arange(12.0).view(3, 4), "other": torch.arange(6).byte()}, path)
    return path, *split_header(path)


@fuzz
@given(data=st.data())
def test_tensors(tensors, data):
    path, header, body = tensors
    rewritten(data.draw, path, header, body)
    for read in (read_tensors, lambda path: {"weight": load_tensor(path, "weight")}):
        try:
            found = read(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 - a refusal is one of two right answers
        else:
            assert sum(tensor.numel() for tensor in found.values()) <= len(body)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = full_set().save(tmp_path_factory.mktemp("set") / "set")
    return folder, *split_header(folder / "images.safetensors")


@fuzz
@given(data=st.data())
def test_a_distilled_set_whose_hashes_were_made_to_fit(artefact, data):
    folder, header, body = artefact
    path, manifest = folder / "images.safetensors", folder / "manifest.json"
    rewritten(data.draw, path, header, body)
    facts = json.loads(manifest.read_text())
    facts["sha256"]["images.safetensors"] = sha256(path)
    manifest.write_text(json.dumps(facts))
    try:
        loaded = DistilledSet.load(folder)
    except UserError as error:
        assert str(folder) in str(error)  # noqa: PT017
    else:
        assert loaded.images.dtype == torch.uint8
        assert loaded.images.shape == full_set().images.shape
        assert loaded.labels.dtype == torch.int64
        assert loaded.labels.bincount().tolist() == [2, 2, 2]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    data, network = DistillationData(subset=["0", "1"]), partial(ConvNet, depth=2, width=2)
    out = str(tmp_path_factory.mktemp("experts"))
    folder = record_experts(data, network=network, num_experts=1, epochs=1, out=out, progress=False)
    found = Trajectories.open(folder)
    return found, *split_header(found.path(0)), json.loads((folder / "index.json").read_text())


@fuzz
@given(data=st.data())
def test_expert_trajectories(recording, data):
    found, header, body, _ = recording
    rewritten(data.draw, found.path(0), header, body)
    whole = found.is_whole(0)
    try:
        weights, losses = found.read(0, [0, 1]), found.losses(0)
    except UserError as error:
        assert str(found.path(0)) in str(error)  # noqa: PT017
    else:
        assert whole
        assert weights.shape == (2, found.setting.num_parameters)
        assert (weights.dtype, losses.dtype, losses.shape) == (torch.float32, torch.float32, (1,))


@fuzz
@given(data=st.data(), value=JSON)
def test_index_of_expert_trajectories(recording, data, value):
    found, _, _, index = recording
    path = found.folder / "index.json"
    path.write_text(json.dumps(replaced(data.draw, index, value)))
    try:
        again = Trajectories.open(found.folder)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert again.setting.differences(found.setting) or again.setting == found.setting
        assert again.bytes_per_expert > 0
        assert again.num_experts > 0


CARD = {
    "classes": [{"id": 3, "wnid": "a", "name": "b"}, {"id": 4, "wnid": "c", "name": "d"}],
    "null_class": 2,
    "image_size": 32,
    "licence": "MIT",
    "data": {"format": "2", "test": "0"},
}


@fuzz
@given(data=st.data(), value=JSON)
def test_card_of_a_prior(tmp_path, data, value):
    (tmp_path / "prior.json").write_text(json.dumps(replaced(data.draw, CARD, value)))
    try:
        card = read_card(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)  # noqa: PT017
    else:
        assert card.image_size > 0
        assert card.null_class >= 0
        assert all(isinstance(info.wnid, str) for info in card.classes)
        assert all(isinstance(value, str) for value in (card.data or {}).values())


# Text

ODD_YAML = st.text("ab01 \n-:[]{}&*!|>'\"#%@.,?=~", max_size=30)


@fuzz
@given(text=ODD_YAML)
@example("!!timestamp x")
@example("2001-99-99")
@example("0001-01-01 00:00:00 +23:00")
@example("!!int ''")
@example("&a [*a]")
@example("!!python/object/apply:os.getcwd []")
@example("[" * 3000)
def test_text_for_every_reader(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    for read in (read_yaml, read_json):
        try:
            json.dumps(read(path), default=str, skipkeys=True)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
    with pytest.raises(UserError):
        Protocol.load(path)
    (tmp_path / "evaluation.csv").write_text(text)
    with pytest.raises(UserError):
        Report.read(tmp_path)
    guard_yaml()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--a", type=dict)
    with suppress(ArgumentError):
        parser.parse_args(["--config", str(path)])


@fuzz
@given(data=st.data(), value=JSON | st.sampled_from([float("nan"), float("inf"), -float("inf"), 2.5, "1e-3"]))
def test_protocol_values(tmp_path, data, value):
    content = replaced(data.draw, protocol_content(), None)
    path = tmp_path / "fuzzed.yaml"
    key = data.draw(st.sampled_from(sorted(content)))
    path.write_text(yaml.safe_dump({**content, key: value}))
    try:
        protocol = Protocol.load(path)
        protocol.factories()
    except UserError:
        return
    assert protocol.hash == Protocol.load(path).hash
    assert all(0 <= number < math.inf for number in numbers_of(protocol))


def numbers_of(protocol):
    rates = [protocol.lr, protocol.momentum, protocol.weight_decay, *protocol.network_lr.values()]
    return [protocol.epochs, protocol.full_data_epochs, protocol.batch_size, *rates]


# Score tables

COLUMN_VALUES = st.sampled_from(
    [
        pa.array([1.0, float("nan"), 2.0, 0.0]),
        pa.array([1.0, float("inf"), 2.0, 0.0]),
        pa.array([1, 2, 3, 4]),
        pa.array([0, 0, 1, -1]),
        pa.array([0, 0, 1, 2**62]),
        pa.array(["a/b.png", "../c.png", "/etc/passwd", "a/b.png"]),
        pa.array(["x", "y", "z", "w"]),
        pa.array([True, None, False, True]),
        pa.nulls(4, pa.float64()),
        pa.array([[1], [2], [], None]),
    ]
)


@fuzz
@given(data=st.data())
def test_score_tables(tmp_path, data):
    original = table_of([0.5, 0.1], [0.3, 0.2])
    path = original.save(tmp_path / "scores.parquet")
    rows = pq.read_table(path)
    metadata = {name.decode(): value.decode() for name, value in rows.schema.metadata.items()}
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, rows.num_columns - 1))
            rows = rows.set_column(place, rows.column_names[place], data.draw(COLUMN_VALUES))
        else:
            name = data.draw(st.sampled_from(sorted(metadata)))
            metadata[name] = data.draw(st.sampled_from(["", "1", "-1", "loss", "label", "x" * 9, "1e9"]))
    pq.write_table(rows.replace_schema_metadata(metadata), path)
    try:
        table = ScoreTable.load(path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert table.paths == original.paths
        assert np.isfinite(table.values).all()
        assert sum(table.counts) == 4
        assert table.labels.tolist() == original.labels.tolist()


# Values of a run's configuration: what the parser takes and no constructor refuses can make a step


def component(name, **arguments):
    return {"class_path": f"ldd.objectives.{name}", "init_args": arguments}


SMALL = {"class_path": "ldd.networks.ConvNet", "init_args": {"depth": 1, "width": 2}}
RATES = {"lr_latents": 0.1, "lr_conditioning": 0.1, "momentum": 0.5, "real_batch": 2}
CONFIG = {
    "objective": component(
        "DistributionMatching", **RATES, real_chunk=4, augmentation=["crop"], network=SMALL
    ),
    "images_per_class": 1,
    "chunk_size": "auto",
    "checkpointing": "auto",
    "checkpoint": {"every_n_steps": 5},
    "preview": {"every_n_steps": 5},
    "export": {"every_n_steps": 5},
    "evaluation": {"protocol": "quick", "repeats": 1, "initial": True, "num_workers": 1},
    "data": {"subset": ["0", "1"], "image_size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
OTHER = component(
    "GradientMatching", **RATES, outer_loop=2, inner_loop=1, lr_network=0.1, batch_network=2, epsilon=1e-6,
    distance="rows", network=SMALL,
)  # fmt: skip
YAML_VALUES = (
    st.sampled_from([None, True, -1, 0, 1, 2, 7, -1.0, 0.0, 0.5, 1e30, float("nan"), float("inf"), 2**70])
    | st.sampled_from(["", "auto", "always", "nan", "quick", "../x", "crop", "os.system", "ldd.data.Source"])
    | st.sampled_from([[], [1], ["crop"], ["0"], ["0", "0"], [0.0] * 3, [float("nan")] * 3, {}, {"a": 1}])
)


def parser_of_a_run():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    for name in ("images_per_class", "chunk_size", "checkpointing"):
        default = signature(Distiller).parameters[name].default
        parser.add_argument(f"--{name}", type=Distiller.__init__.__annotations__[name], default=default)
    for name, kind in (
        ("checkpoint", LastCheckpoints),
        ("preview", Preview),
        ("export", Export),
        ("evaluation", CrossArchitecture),
        ("data", DistillationData),
    ):
        parser.add_class_arguments(kind, name)
    return parser


@fuzz
@given(data=st.data(), value=YAML_VALUES, objective=st.sampled_from([CONFIG["objective"], OTHER]))
def test_values_of_a_configuration(data, value, objective):
    config = replaced(data.draw, {**CONFIG, "objective": objective}, "here")
    text = yaml.safe_dump(config).replace(
        "here", yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    )
    parser = parser_of_a_run()
    try:
        options = parser.parse_string(text)
        refuse_nulls(parser, options)
        made = parser.instantiate_classes(options)
        real = made.data
        real.setup()
        model = Distiller(
            PixelPrior(real.spec.image_size),
            made.objective,
            real.spec,
            made.images_per_class,
            chunk_size=made.chunk_size,
            checkpointing=made.checkpointing,
        )
        model.initializer(model.codes, model.prior, real.core_set, torch.Generator().manual_seed(0))
        optimizers = made.objective.optimizers(model.codes, model.prior)
        for term in made.objective.terms(model.context(real.core_set, 0)):
            term.value.backward()
            for name in term.optimizers:
                optimizers[name].step()
    except (ArgumentError, UserError):
        return
    assert isinstance(real.spec, DataSpec)
    size = real.spec.image_size
    assert model.codes.latents.shape == (real.spec.num_classes * made.images_per_class, 3, size, size)


# All of them, as `python -m benchmarks.fuzz --many 20000` has them


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    here, path = os.getcwd(), list(sys.path)
    yield Maker(tmp_path_factory.mktemp("hostile"))
    os.chdir(here)
    sys.path[:] = path


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_and_hostile_files_are_refused_or_read_and_run_nothing(maker, tmp_path, kind):
    watch()
    for number in range(3 if kind == "run" else 12):
        place = tmp_path / str(number)
        place.mkdir()
        readers = maker.inputs(kind, number, place)
        SEEN.clear()
        for read in readers:
            with suppress(UserError):
                read()
        assert not SEEN, number
