"""Labels of crops: what students meet, in which form, from a teacher or from a file."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_world import SPEC, SmallData, protocol_file, small_set

from ldd.artefact.soft_labels import quantise
from ldd.disk.parts import JOIN, NthPart, make, make_part
from ldd.errors import UserError
from ldd.evaluation import Labeller, Protocol, RandomReal, TrainingSet, evaluate, train_student
from ldd.labels.crops import CropLabels, CropTeacher, crop_teacher, crop_work, label_crops
from ldd.networks import ConvNet
from ldd.students.training import fresh_network

CPU = torch.device("cpu")
FORMS = [(None, "float32"), (None, "int8"), (2, "float16"), (1, "int8")]


@pytest.fixture
def teacher():
    return fresh_network(lambda k, size: ConvNet(k, size, width=3, depth=1), SPEC, 8, "t", 0).eval()


@pytest.fixture
def protocol(tmp_path):
    """Views, CutMix, batches of 4 of 6 images: order and crops matter."""
    views = {"crop_scale": [0.5, 1.0], "flip": True}
    changes = {"views": views, "augmentations": [], "cutmix": 1.0, "labels": "teacher", "temperature": 3}
    return Protocol.load(protocol_file(tmp_path, batch_size=4, epochs=3, **changes))


def learned(protocol, training, seed, teacher=None):
    network = fresh_network(protocol.factories()["narrow"], SPEC, 0, "a", 0)
    train_student(network, training, SPEC, protocol, epochs=3, seed=seed, teacher=teacher)
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


@pytest.mark.parametrize(("top_k", "precision"), FORMS)
def test_a_teacher_answers_in_the_form_that_is_charged(teacher, top_k, precision):
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    asked = CropTeacher(teacher, 3.0, top_k, precision)
    expected = quantise((teacher(x) / 3).softmax(1).detach(), top_k, precision).float()
    assert torch.equal(asked(x), expected)
    assert repr(asked) != repr(CropTeacher(teacher, 2.0, top_k, precision))


@pytest.mark.parametrize(("top_k", "precision"), FORMS)
def test_students_of_stored_labels_are_those_of_the_teacher_bit_for_bit(
    teacher, protocol, tmp_path, top_k, precision
):
    """Whatever their own seed: order, crops and labels come from the file."""
    labeller, distilled = Labeller(teacher, SPEC, top_k=top_k, precision=precision), small_set(2)
    label_crops(distilled, labeller, protocol, 7, CPU).save(tmp_path / "crops.safetensors")
    stored = CropLabels.load(tmp_path / "crops.safetensors")
    plain = TrainingSet(distilled.images, distilled.labels)
    with_teacher = learned(protocol, plain, 7, crop_teacher(labeller, protocol))
    assert torch.equal(learned(protocol, plain.with_crops(stored.seed, stored.tensors), 5), with_teacher)
    other = learned(protocol, plain, 5, crop_teacher(labeller, protocol))
    assert not torch.equal(other, with_teacher)


def test_an_evaluation_without_the_teacher(teacher, protocol):
    """The same bytes are charged, and another form of the labels gives other students."""
    data, distilled = SmallData(), small_set(2)
    arguments = {"repeats": 2, "baselines": [], "num_workers": 1, "progress": False}
    labeller = Labeller(teacher, SPEC, top_k=2, precision="int8", facts={"network": "t"})
    crops = label_crops(distilled, labeller, protocol, 0, CPU)
    report = evaluate(distilled, None, data, protocol, crops=crops, **arguments)
    asked = evaluate(distilled, None, data, protocol, labeller=labeller, **arguments)
    labels = report.facts["cost"]["distilled"]["storage"]["parts"]["labels"]
    assert labels == asked.facts["cost"]["distilled"]["storage"]["parts"]["labels"]
    assert labels == {"floats": 3 * 6 * 2, "bytes": 6 * 8 + 3 * 6 * 2 * (1 + 2)}
    assert asked.facts["teacher"] == {"network": "t", "temperature": 3}
    assert report.facts["teacher"] == {**asked.facts["teacher"], "labelling": {}}
    alone = evaluate(distilled, None, data, protocol, crops=crops, **{**arguments, "baselines": None})
    assert alone.rows[0].accuracy == report.rows[0].accuracy
    assert "there is none; give --labels" in alone.facts["left_out"]["random_real"]
    with pytest.raises(UserError, match=r"give --labels .* leave all others out"):
        evaluate(distilled, None, data, protocol, crops=crops, **{**arguments, "baselines": [RandomReal()]})


def test_records_tell_forms_of_crop_labels_apart(teacher, protocol, tmp_path):
    """A label kept to one class teaches otherwise than a whole one, and is not taken for it on a second call."""
    data, distilled = SmallData(), small_set(2)
    arguments = {"repeats": 1, "baselines": [], "num_workers": 1, "progress": False}

    def accuracy(**more):
        found = evaluate(
            distilled, None, data, protocol, records=more.pop("records", None), **arguments, **more
        )
        return [row.accuracy for row in found.rows]

    for top_k in (None, 1):
        labeller = Labeller(teacher, SPEC, top_k=top_k, precision="int8")
        crops = label_crops(distilled, labeller, protocol, 3, CPU)
        for form in ({"labeller": labeller}, {"crops": crops}):
            assert accuracy(records=tmp_path / "records", **form) == accuracy(**form)


def test_labels_of_another_set_or_protocol_or_no_labels_at_all(teacher, protocol, tmp_path):
    labeller, distilled = Labeller(teacher, SPEC), small_set(2)
    crops = label_crops(distilled, labeller, protocol, 0, CPU)
    crops.check(distilled, protocol)
    short = replace(crops, tensors={"soft_labels": crops.tensors["soft_labels"][:2]})
    with pytest.raises(UserError, match="are not of 3 epochs of 6 images"):
        short.check(distilled, protocol)
    arguments = {"repeats": 1, "baselines": [], "num_workers": 1, "progress": False}
    with pytest.raises(UserError, match="crop_labels are of another set"):
        evaluate(small_set(2, seed=4), None, SmallData(), protocol, crops=crops, **arguments)
    edited = Protocol.load(protocol_file(tmp_path, labels="teacher"))
    with pytest.raises(UserError, match="of protocol small as it was before it was edited"):
        evaluate(distilled, None, SmallData(), edited, crops=crops, **arguments)
    with pytest.raises(UserError, match=r"protocol \(small\) takes the labels of the set"):
        label_crops(distilled, labeller, Protocol.load(protocol_file(tmp_path)), 0, CPU)
    save_file({"soft_labels": torch.zeros(1, 2, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold labels of crops"):
        CropLabels.load(tmp_path / "other.safetensors")
    halves = {"soft_label_values": torch.zeros(3, 6, 2)}
    for damaged in ({"tensors": {"soft_labels": torch.zeros(2, 3)}}, {"tensors": halves}, {"seed": "zero"}):
        replace(crops, **damaged).save(tmp_path / "damaged.safetensors")
        with pytest.raises(UserError, match="is damaged"):
            CropLabels.load(tmp_path / "damaged.safetensors")


def test_what_is_stored_takes_what_its_form_takes(teacher, protocol, tmp_path):
    labeller = Labeller(teacher, SPEC, top_k=2, precision="float16")
    label_crops(small_set(2), labeller, protocol, 0, CPU).save(tmp_path / "crops.safetensors")
    tensors = load_file(tmp_path / "crops.safetensors")
    shapes = {name: (tuple(part.shape), part.dtype) for name, part in tensors.items()}
    assert shapes == {
        "soft_label_values": ((3, 6, 2), torch.float16),
        "soft_label_indices": ((3, 6, 2), torch.int16),
    }


def test_a_stopped_labelling_goes_on_at_its_epoch(teacher, protocol, tmp_path, monkeypatch):
    labeller, distilled = Labeller(teacher, SPEC, top_k=2, facts={"network": "t"}), small_set(2)
    out, asked = tmp_path / "crops.safetensors", []
    plain = label_crops(distilled, labeller, protocol, 3, CPU)
    packed = CropTeacher.packed

    def counted(self, inputs, stop_at):
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append(len(inputs))
        return packed(self, inputs)

    def label(stop_at, seed=3):
        monkeypatch.setattr(CropTeacher, "packed", lambda self, inputs: counted(self, inputs, stop_at))
        make(crop_work(out, distilled, labeller, protocol, seed, CPU, lambda seconds: {}))

    with pytest.raises(KeyboardInterrupt):
        label(stop_at=5)  # in the second batch of the third epoch of two batches each
    assert not out.exists()
    label(stop_at=-1)
    assert asked == [4, 2] * 2 + [4] + [4, 2]  # the third epoch again, and no other
    plain.save(tmp_path / "plain.safetensors")
    assert out.read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*crops*")) == ["crops.safetensors"]
    with pytest.raises(KeyboardInterrupt):
        label(stop_at=12)
    label(stop_at=-1, seed=4)  # other crops: nothing of it counts
    assert CropLabels.load(out).tensors.keys() == plain.tensors.keys()
    assert not all(map(torch.equal, CropLabels.load(out).tensors.values(), plain.tensors.values()))


@pytest.mark.parametrize("of", [2, 3, 5])
def test_parts_end_in_the_labels_of_one_process(teacher, protocol, tmp_path, of):
    labeller, distilled = Labeller(teacher, SPEC, top_k=2, precision="int8"), small_set(2)
    label_crops(distilled, labeller, protocol, 3, CPU).save(tmp_path / "alone.safetensors")
    out = tmp_path / "crops.safetensors"

    def work(seed=3):
        return crop_work(out, distilled, labeller, protocol, seed, CPU, lambda seconds: {}, in_parts=True)

    made = [make_part(work(), NthPart(number, of)) for number in range(of, 0, -1)]
    assert made[0] is None
    assert made[-1].teacher == label_crops(distilled, labeller, protocol, 3, CPU).teacher
    assert out.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*crops*")) == ["crops.safetensors"]
    out.unlink()
    make_part(work(), NthPart(1, 2))
    assert make_part(work(seed=4), NthPart(2, 2)) is None
    with pytest.raises(UserError, match=r"part 2 of 2 is of other settings or images"):
        make_part(work(), JOIN)
