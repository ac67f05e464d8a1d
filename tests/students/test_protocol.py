"""Protocol files, and the schedule against torch's own schedulers."""

import json
from dataclasses import fields

import pytest
import torch
from small_world import protocol_content, protocol_file

from ldd.errors import UserError
from ldd.evaluation import Protocol
from ldd.networks import VGG11, AlexNet, ConvNet, ViT
from ldd.runtime.classes import canonical
from ldd.students.protocol import shipped, warm_up


def released_schedule(epochs):
    """The released loop: two schedulers on one optimizer, the second once the first has reached its end."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-7, 1.0, total_iters=epochs // 2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs // 2, eta_min=0)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (warm_up if epoch <= epochs // 2 else cosine).step()
    return rates


@pytest.mark.parametrize("epochs", [2, 3, 10, 1000])
def test_schedule_equals_torch(epochs):
    expected = released_schedule(epochs)
    assert [warm_up(e, epochs) for e in range(epochs)] == pytest.approx(expected, abs=1e-9)


def test_schedule_of_the_published_length():
    rates = [1e-3 * warm_up(epoch, 1000) for epoch in range(1000)]
    assert rates[0] == pytest.approx(1e-10)
    assert rates[500] == rates[501] == max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(4e-8, rel=0.02)


def rates_of(epochs, kind, *settings, **named):
    """Shares of the peak that a scheduler of torch gives, an epoch each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule, rates = kind(optimizer, *settings, **named), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_drop_of_the_released_d3_loop():
    """Its milestone is epoch E / 2 + 1, from which on the rate is a tenth."""
    expected = rates_of(2000, torch.optim.lr_scheduler.MultiStepLR, [2000 // 2 + 1], gamma=0.1)
    protocol = Protocol.load("d3-1")
    assert [protocol.lr_at(epoch, 2000) for epoch in range(2000)] == pytest.approx(expected, abs=1e-9)
    assert [Protocol.load(f"d3-{budget}").lr for budget in (1, 2, 10)] == [5e-2, 2e-2, 5e-3]
    assert (protocol.samples, protocol.mean_images, protocol.epochs) == ("fresh", "soft", 2000)


def test_the_released_d3_loop_as_it_counts():
    """`for ep in range(E + 1)`: a tenth after epoch E / 2 + 1, and 1e-4 more of every rate."""
    protocol = Protocol.load("d3-1-released")
    epochs, rate, expected = 2000, 1.0, []
    for epoch in range(epochs + 1):
        expected.append(rate)
        if epoch == epochs // 2 + 1:
            rate *= 0.1
    assert [protocol.lr_at(epoch, protocol.epochs) for epoch in range(protocol.epochs)] == expected
    assert [epoch for epoch in range(2000) if protocol.forgets_after(epoch, 2001)] == [1001]
    assert not any(Protocol.load("d3-1").forgets_after(epoch, 2000) for epoch in range(2000))
    for budget in (1, 2, 10):
        ours, released = Protocol.load(f"d3-{budget}"), Protocol.load(f"d3-{budget}-released")
        assert released.lr == pytest.approx(ours.lr + 1e-4, abs=1e-12)
        resnet = "ldd.networks.ResNet18"
        assert released.network_lr[resnet] == pytest.approx(ours.network_lr[resnet] + 1e-4, abs=1e-12)


def test_ld3m_as_published():
    protocol = Protocol.load("ld3m")
    assert (protocol.id, protocol.epochs, protocol.batch_size) == ("ld3m", 1000, 256)
    assert (protocol.momentum, protocol.weight_decay, protocol.weight_ema) == (0.9, 5e-4, False)
    assert set(protocol.augmentations) == {"color", "crop", "cutout", "flip", "scale", "rotate"}
    assert [protocol.peak_lr(n) for n in (ConvNet, AlexNet, ViT, VGG11)] == [1e-3, 1e-3, 1e-3, 1e-4]
    assert set(protocol.networks) == {"ConvNet", "ResNet18", "VGG11", "AlexNet", "ViT"}


def test_steps_of_the_released_idc_loop():
    """Two milestones, at two thirds and five sixths of the epochs; 2,000 and 3,000 for 10 images and 1."""
    protocol = Protocol.load("idc-hard")
    epochs = [protocol.budget([n, 1])[0] for n in (1, 2, 10, 11, 50, 200, 500, 501)]
    assert epochs == [3000, 2000, 2000, 1500, 1500, 1000, 500, 300]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * 2000 // 3, 5 * 2000 // 6], gamma=0.2)
    expected = []
    for _ in range(2000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    assert [protocol.lr_at(epoch, 2000) for epoch in range(2000)] == pytest.approx(expected, abs=1e-9)
    assert (protocol.batch_size, protocol.cutmix, protocol.looks) == (64, 1.0, 100)
    assert (protocol.views.crop_scale, protocol.views.jitter, protocol.views.lighting) == (
        (0.5, 1.0),
        0.4,
        0.1,
    )
    assert set(protocol.networks) == {"ConvNet6", "ResNetAP10", "ResNet18"}


def test_rded_as_released():
    protocol = Protocol.load("rded-soft")
    assert [protocol.budget([n]) for n in (1, 10, 50)] == [(300, 10), (300, 50), (300, 100)]
    assert (protocol.optimizer, protocol.lr, protocol.weight_decay) == ("adamw", 1e-3, 0.01)
    assert (protocol.labels, protocol.temperature, protocol.decay_vectors) == ("teacher", 20.0, False)
    assert protocol.lr_at(0, 300) == 1
    assert protocol.lr_at(150, 300) == pytest.approx(0.5 * (1 + 0.5**0.5))
    assert protocol.lr_at(300, 300) == pytest.approx(0.5)


def test_released_quirks_are_a_protocol_of_their_own():
    released, clean = Protocol.load("ld3m-released"), Protocol.load("ld3m")
    assert released.weight_ema
    assert released.networks["ViT"].init_args == {"layer_norm": False}
    assert released.hash != clean.hash


def test_every_shipped_protocol_builds_its_networks():
    assert shipped() == [
        *("d3-1", "d3-1-released", "d3-10", "d3-10-released", "d3-2", "d3-2-released", "d3-pool"),
        *("ddranking", "ddranking-small", "idc-hard", "idc-hard-adamw"),
        *("idc-hard-ims3", "idc-hard-muon", "idc-hard-small", "ld3m", "ld3m-released", "ld3m-short"),
        *("photo-small", "quick"),
        *("rd3-soft", "rded-soft", "rded-soft-small", "rethinkdc-hard", "rethinkdc-soft"),
    ]
    for name in shipped():
        protocol = Protocol.load(name)
        assert protocol.id == name
        assert protocol.source
        for network, factory in protocol.factories().items():
            size = 64 if network == "ConvNet6" else 32  # six halvings
            with torch.device("meta"):
                assert factory(10, size)(torch.zeros(2, 3, size, size)).shape == (2, 10), network
        assert all(canonical(path) != path for path in protocol.network_lr)  # each names a class there is


def test_shipped_protocols_are_frozen():
    """What an id stands for never changes: another recipe needs another id."""
    frozen = {
        "d3-1-released": "106e2199f1dbba43",
        "d3-10-released": "fe253a7a47156309",
        "d3-2-released": "f2546f1af861235e",
        "d3-1": "2d84eab07a8f8b27",
        "d3-10": "6694e3c004b382e2",
        "d3-2": "61c749eed32339ba",
        "d3-pool": "198de9bed6431345",
        "ddranking": "0bc8166654410d8d",
        "ddranking-small": "b9b5b4e4e3a6e7ec",
        "idc-hard": "e5155de866a22965",
        "idc-hard-adamw": "2a7f6d2bda83b764",
        "idc-hard-ims3": "554e0cb2bca4cc77",
        "idc-hard-muon": "b1b783ad9f2ada2f",
        "idc-hard-small": "24e9dcf381fb23cc",
        "ld3m": "87941098f4b973d1",
        "ld3m-released": "1ead3cddd0bd4fd2",
        "ld3m-short": "5838c8467a25fcad",
        "photo-small": "6fa80567046a4c16",
        "quick": "d41d42f7755894d9",
        "rd3-soft": "b72fd3ae8b3582a3",
        "rded-soft": "5935be19acaed492",
        "rded-soft-small": "9171d1a408a12979",
        "rethinkdc-hard": "d5258a6aa48edaf4",
        "rethinkdc-soft": "38e363a8a6a3edac",
    }
    assert {name: Protocol.load(name).hash for name in shipped()} == frozen


def test_a_family_differs_by_what_its_ids_say():
    base = Protocol.load("idc-hard")
    for name, changed in {
        "idc-hard-ims3": {"lr", "views"},
        "idc-hard-adamw": {"lr", "optimizer", "weight_decay"},
        "idc-hard-muon": {"lr", "optimizer", "weight_decay", "momentum"},
    }.items():
        other = Protocol.load(name)
        differ = {f.name for f in fields(base) if getattr(base, f.name) != getattr(other, f.name)}
        assert differ == {"id", "source", *changed}, name
    soft, hard = Protocol.load("rethinkdc-soft"), Protocol.load("rethinkdc-hard")
    differ = {f.name for f in fields(soft) if getattr(soft, f.name) != getattr(hard, f.name)}
    assert differ == {"id", "source", "labels", "cutmix", "temperature"}


def test_a_full_cosine_is_that_of_torch():
    expected = rates_of(400, torch.optim.lr_scheduler.CosineAnnealingLR, 400)
    protocol = Protocol.load("rd3-soft")
    assert [protocol.lr_at(epoch, 400) for epoch in range(400)] == pytest.approx(expected, abs=1e-9)


def test_hash_covers_what_has_an_effect(tmp_path):
    base = Protocol.load(protocol_file(tmp_path))
    assert Protocol.load(protocol_file(tmp_path, source="other words")).hash == base.hash
    for changes in (
        {"lr": 0.06},
        {"epochs": 5},
        {"weight_ema": True},
        {"network_lr": {"ldd.networks.VGG11": 1e-4}},
        {"networks": {}},
        {"test_every": 2},
        {"rates": "drop"},
        {"samples": 3},
        {"mean_images": "never"},
        {"optimizer": "adamw"},
        {"decay_vectors": False},
        {"by_images": {1: {"epochs": 9}}},
        {"views": {"flip": True}, "augmentations": []},
        {"views": {"flip": True, "rand_augment": [1, 6]}, "augmentations": []},
        {"cutmix": 0.5},
        {"labels": "teacher"},
        {"temperature": 4},
        {"looks": 2},
        {"scores": "ddranking"},
    ):
        assert Protocol.load(protocol_file(tmp_path, **changes)).hash != base.hash
    assert len(base.hash) == 16


def test_a_setting_left_at_its_default_leaves_the_hash(tmp_path):
    base = Protocol.load(protocol_file(tmp_path))
    spelt_out = {"test_every": 1, "weight_ema": False, "full_data_batch_size": None, "samples": "fresh"}
    assert Protocol.load(protocol_file(tmp_path, **spelt_out)).hash == base.hash


@pytest.mark.parametrize(
    "change",
    [{"rates": "step"}, {"samples": -1}, {"samples": "many"}, {"samples": True}, {"mean_images": True}],
)
def test_choices(tmp_path, change):
    [(name, value)] = change.items()
    with pytest.raises(UserError, match=rf"protocol small: {name} \({value}\) must be"):
        Protocol.load(protocol_file(tmp_path, **change))


def test_other_spellings_are_the_same_protocol(tmp_path):
    """Whole numbers with a point or in quotes, rates as whole numbers: the same values, types and hash."""
    plain = Protocol.load(protocol_file(tmp_path, lr=1.0, epochs=100, by_images={10: {}}, looks=2))
    other = Protocol.load(protocol_file(tmp_path, lr=1, epochs=100.0, by_images={"1e1": {}}, looks="2"))
    assert (other, other.hash) == (plain, plain.hash)
    assert [type(value) for value in (other.lr, other.epochs, *other.by_images, other.looks)] == [
        *(float, int, int, int)
    ]


def test_numbers_that_yaml_reads_as_text(tmp_path):
    path = tmp_path / "text.yaml"
    path.write_text(json.dumps(protocol_content()).replace("0.05", '"5e-2"'))
    assert Protocol.load(path).lr == 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrr": 1}, "unknown lrr"),
        ({"epochs": 1}, r"protocol small: epochs \(1\) must be a whole number of at least 2"),
        ({"batch_size": 0}, r"batch_size \(0\) must be a whole number of at least 1"),
        ({"test_every": 0}, r"test_every \(0\) must be a whole number of at least 1"),
        ({"lr": 0}, r"lr \(0.0\) must be a number above 0"),
        ({"network_lr": {"x.Y": -1}}, r"x.Y \(-1.0\) must be a number above 0"),
        ({"lr": "fast"}, "value of the wrong kind"),
        ({"networks": {"a": 1}}, "value of the wrong kind"),
        ({"networks": {"a": {"class_path": None}}}, "value of the wrong kind: class_path must be text"),
        ({"networks": {"a": {"class_path": "x.Y", "init_args": None}}}, "value of the wrong kind"),
        ({"augmentations": ["blur"]}, "blur"),
        ({"temperature": 0}, r"temperature \(0.0\) must be a number above 0"),
        ({"cutmix": -1}, r"cutmix \(-1.0\) must be a number of 0 or more"),
        ({"looks": -1}, r"looks \(-1\) must be a whole number of at least 0"),
        ({"optimizer": "lion"}, r"optimizer \(lion\) must be one of sgd, adamw, muon"),
        (
            {"by_images": {10: {"epochs": 1}}},
            r"by_images.10.epochs \(1\) must be a whole number of at least 2",
        ),
        ({"by_images": {10: {"lr": 1}}}, "value of the wrong kind"),
        ({"by_images": {10: {"epochs": 2.5}}}, r"epochs \(2.5\) must be a whole number"),
        ({"labels": "teacher", "scores": "ddranking"}, "compare sets with their own labels"),
        ({"views": {"flip": True}}, r"views and augmentations \(crop, color\) exclude each other"),
        (
            {"views": {"crop_scale": [0.5]}, "augmentations": []},
            "views: crop_scale must be a list of 2 values",
        ),
        ({"views": {"crop_scale": [True, 1]}, "augmentations": []}, "views: crop_scale.0. must be a number"),
        (
            {"views": {"rand_augment": [2.7, 6]}, "augmentations": []},
            "rand_augment.0. must be a whole number",
        ),
        ({"views": {"flip": "false"}, "augmentations": []}, "views: flip must be true or false, got 'false'"),
        ({"views": {"patches": 2.5}, "augmentations": []}, "views: patches must be a whole number, got 2.5"),
        ({"epochs": 100.9}, r"epochs \(100.9\) must be a whole number of at least 2"),
        ({"epochs": True}, r"epochs \(True\) must be a whole number"),
        ({"epochs": None}, r"epochs \(None\) must be a whole number"),
        ({"epochs": float("inf")}, r"epochs \(inf\) must be a whole number"),
        ({"full_data_batch_size": 32.5}, r"full_data_batch_size \(32.5\) must be a whole number"),
        ({"looks": "1.5"}, r"looks \(1.5\) must be a whole number"),
        ({"by_images": {1.5: {"epochs": 2}}}, r"by_images.1.5.epochs \(2\) must be .* number of images"),
        ({"by_images": {True: {"epochs": 2}}}, r"by_images.True.epochs \(2\) must be .* number of images"),
        ({"weight_ema": "false"}, r"weight_ema \(false\) must be true or false"),
        ({"weight_ema": 0}, r"weight_ema \(0\) must be true or false"),
        ({"decay_vectors": "no way"}, r"decay_vectors \(no way\) must be true or false"),
        ({"lr": True}, r"lr \(True\) must be a number above 0"),
        ({"lr": float("nan")}, r"lr \(nan\) must be a number above 0"),
        ({"momentum": False}, r"momentum \(False\) must lie in"),
        ({"weight_decay": None}, r"weight_decay \(None\) must be a number of 0 or more"),
        ({"cutmix": True}, r"cutmix \(True\) must be a number of 0 or more"),
        ({"network_lr": {"x.Y": True}}, r"x.Y \(True\) must be a number above 0"),
        (
            {"network_lr": {"ldd.networks.Vit": 0.5}},
            "network_lr .ldd.networks.Vit. must name networks that",
        ),
        ({"network_lr": {"ldd.networks.base.NetworkSpec": 0.5}}, "network_lr .* must name networks"),
        ({"id": None}, r"id \(None\) must be a name, in quotes"),
        ({"id": True}, r"id \(True\) must be a name"),
    ],
)
def test_bad_files(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Protocol.load(protocol_file(tmp_path, **changes))


def test_missing_key(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("id: short\nepochs: 3\n")
    with pytest.raises(UserError, match="missing augmentations, batch_size, full_data_epochs, lr"):
        Protocol.load(path)


@pytest.mark.parametrize("text", ["", "- a", "id: [", "\0"])
def test_not_a_protocol(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"keys that do not fit|cannot be read"):
        Protocol.load(path)


@pytest.mark.parametrize("name", ["ldm3", "missing/file.yaml"])
def test_unknown_protocol(name):
    with pytest.raises(
        UserError,
        match=rf"protocol \({name}\) is not known; choose from d3-1, d3-1-released, d3-10, d3-10-released",
    ):
        Protocol.load(name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"class_path": "ldd.networks.ConvNot"}, "'ldd.networks.ConvNot' cannot be imported"),
        ({"class_path": "torch.nn.Linear"}, "not a subclass of ldd.networks.Network"),
        (
            {"class_path": "ldd.networks.ConvNet", "init_args": {"wide": 3}},
            "wide.*it takes num_classes, .*width",
        ),
    ],
)
def test_bad_networks(tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        Protocol.load(protocol_file(tmp_path, networks={"a": spec})).factories()
