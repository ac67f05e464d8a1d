"""Structure of the classifiers: published sizes, features, refusals, determinism, second derivatives."""

from functools import partial

import pytest
import torch
import torchvision
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.networks import VGG11, AlexNet, ConvNet, Network, NetworkFactory, ResNet18, ResNetAP10, ViT
from ldd.runtime.seeding import seeded

SMALL: dict[str, NetworkFactory] = {
    "convnet": partial(ConvNet, width=8),
    "alexnet": partial(AlexNet, width=8),
    "vgg": partial(VGG11, width=4),
    "resnet": partial(ResNet18, width=4),
    "resnet_sized": partial(ResNet18, width=4, stem="sized", norm="batch", init="fan_out"),
    "resnet_ap": partial(ResNetAP10, width=4),
    "vit": partial(ViT, dim=16, depth=2, heads=2),
}


def count(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("factory", "image_size", "expected"),
    [
        (ConvNet, 128, 615_690),
        (ConvNet, 256, 763_530),
        (ResNet18, 128, 11_173_962),
        (partial(ResNet18, stem="sized"), 256, 11_181_642),  # 7x7 for 3x3: 40 x 3 x 64 more
        (ResNetAP10, 128, 4_903_242),
        (ResNetAP10, 256, 4_910_922),
        (AlexNet, 128, 2_333_002),
        (AlexNet, 256, 3_807_562),
        (VGG11, 128, 9_476_874),
        (partial(ViT, layer_norm=False), 128, 16_176_650),
        (ViT, 128, 16_198_154),
    ],
)
def test_published_parameter_counts(factory, image_size, expected):
    with torch.device("meta"):  # counts need no memory
        assert count(factory(10, image_size)) == expected


@pytest.mark.parametrize("image_size", [32, 40, 48, 64, 96, 128])
@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_last_linear_layer_of_the_features(name, image_size):
    with seeded(0):
        network = SMALL[name](5, image_size).eval()
        x = torch.randn(2, 3, image_size, image_size)
    features = network.embed(x)
    layer = network.classifier
    assert features.shape == (2, layer.in_features)
    torch.testing.assert_close(network(x), features @ layer.weight.T + layer.bias, atol=1e-5, rtol=0)
    assert network(x).shape == (2, 5)


@pytest.mark.parametrize("image_size", [32, 64, 128, 256])
def test_convnet_features_at_default_width_and_depth(image_size):
    with torch.device("meta"):
        assert ConvNet(10, image_size).embed(torch.empty(2, 3, image_size, image_size)).shape == (2, 2048)


def test_convnet_equals_its_formula_in_float64():
    with seeded(1):
        network = ConvNet(4, 32, depth=2, width=6).double()
        x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
        for parameter in network.parameters():
            parameter.data.normal_()
    values = list(network.parameters())
    y = x
    for block in range(2):
        weight, bias, gain, shift = values[4 * block : 4 * block + 4]
        patches = F.unfold(F.pad(y, (1, 1, 1, 1)), 3)
        y = (weight.flatten(1) @ patches).unflatten(2, y.shape[2:]) + bias[:, None, None]
        mean, variance = y.mean((2, 3), keepdim=True), y.var((2, 3), keepdim=True, unbiased=False)
        y = (y - mean) / (variance + 1e-5).sqrt() * gain[:, None, None] + shift[:, None, None]
        y = y.clamp(min=0)
        y = (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(network(x), y.flatten(1) @ values[-2].T + values[-1], atol=1e-10, rtol=0)


def normalised(y):
    """Zero mean and unit variance over each image's map; gains start at 1, shifts at 0."""
    return (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def built(factory):
    """A network in float64 with one image size, three inputs, and an iterator over its parameters."""
    with seeded(6):
        network = factory(4, 32).double()
        x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    return network, x, network.parameters()


def test_alexnet_equals_its_formula_in_float64():
    network, y, values = built(SMALL["alexnet"])
    x = y
    for padding, pooled in ((2, True), (2, True), (1, False), (1, False), (1, True)):
        y = F.conv2d(y, next(values), next(values), padding=padding).relu()
        y = F.max_pool2d(y, 2) if pooled else y
    torch.testing.assert_close(network(x), F.linear(y.flatten(1), *values), atol=1e-10, rtol=0)


def test_vgg_equals_its_formula_in_float64():
    network, y, values = built(SMALL["vgg"])
    x = y
    for pooled in (True, True, False, True, False, True, False, True):
        weight, bias, _, _ = (next(values) for _ in range(4))
        y = normalised(F.conv2d(y, weight, bias, padding=1)).relu()
        y = F.max_pool2d(y, 2) if pooled else y
    assert y.shape[2:] == (1, 1)
    repeated = y.expand(-1, -1, 7, 7)  # the 7x7 pooling of a single value
    torch.testing.assert_close(network(x), F.linear(repeated.flatten(1), *values), atol=1e-10, rtol=0)


def test_vgg_pools_larger_maps_by_their_maximum():
    network = SMALL["vgg"](4, 256)
    x = torch.rand(2, 3, 448, 448)
    *layers, _ = network.features
    expected = F.max_pool2d(torch.nn.Sequential(*layers)(x), 2).flatten(1)
    torch.testing.assert_close(network.embed(x), expected, atol=1e-6, rtol=0)


def test_resnet_equals_its_formula_in_float64():
    network, y, values = built(SMALL["resnet"])
    x = y

    def convolved(y, stride=1, padding=1):
        weight, _, _ = (next(values) for _ in range(3))
        return normalised(F.conv2d(y, weight, stride=stride, padding=padding))

    y = convolved(y).relu()
    for stride, widened in (
        (1, False),
        (1, False),
        (2, True),
        (1, False),
        (2, True),
        (1, False),
        (2, True),
        (1, False),
    ):
        inner = convolved(convolved(y, stride).relu())
        y = (inner + (convolved(y, stride, padding=0) if widened else y)).relu()
    assert y.shape[2:] == (4, 4)
    torch.testing.assert_close(network(x), F.linear(y.mean((2, 3)), *values), atol=1e-10, rtol=0)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_vit_equals_its_formula_in_float64(layer_norm):
    with seeded(2):
        network = ViT(4, 32, dim=12, depth=2, heads=3, mlp_dim=7, layer_norm=layer_norm).double().eval()
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    weights = dict(network.named_parameters())

    def normed(tokens):
        if not layer_norm:
            return tokens
        centred = tokens - tokens.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        )  # gains start at 1, shifts at 0

    def linear(tokens, name):
        return tokens @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    # 4 px patches in reading order, each flattened as (channel, row, column).
    patches = x.reshape(2, 3, 8, 4, 8, 4).permute(0, 2, 4, 1, 3, 5).reshape(2, 64, 48)
    tokens = patches @ weights["patches.weight"].flatten(1).T + weights["patches.bias"]
    tokens = torch.cat([weights["class_token"].expand(2, 1, 12), tokens], 1) + weights["positions"]
    for block in (1, 2):
        q, k, v = linear(normed(tokens), f"blocks.{block}.queries_keys_values").chunk(3, -1)
        heads = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            scores = torch.einsum("nid,njd->nij", q[..., part], k[..., part]) / 2  # sqrt(4)
            heads.append(torch.softmax(scores, -1) @ v[..., part])
        tokens = tokens + linear(torch.cat(heads, -1), f"blocks.{block}.project.0")
        hidden = F.gelu(linear(normed(tokens), f"blocks.{block}.mlp.0"))
        tokens = tokens + linear(hidden, f"blocks.{block}.mlp.3")
    expected = linear(normed(tokens[:, 0]), "classifier")
    torch.testing.assert_close(network(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("image_size", "kernel", "pooled"), [(64, 3, 1), (128, 3, 2), (224, 7, 4)])
def test_resnet_ap_equals_its_formula_in_float64(image_size, kernel, pooled):
    """Stems by size, halving by average pooling; parameters in the order of the layers, none with a bias."""
    with seeded(6):
        network = ResNetAP10(4, image_size, width=4).double()
        x = torch.randn(2, 3, image_size, image_size, dtype=torch.float64)
    values = dict(network.named_parameters())

    def convolved(y, name):
        weight = values[f"features.{name}.weight"]
        return F.conv2d(y, weight, padding=weight.shape[-1] // 2)

    assert values["features.0.weight"].shape[-1] == kernel
    y = F.avg_pool2d(normalised(convolved(x, "0")).relu(), pooled)
    first = 3 if pooled == 1 else 4
    for place in range(4):
        inner = normalised(convolved(y, f"{first + place}.inner.0")).relu()
        if place:
            y = F.avg_pool2d(convolved(y, f"{first + place}.shortcut.0"), 2)
            y, inner = normalised(y), F.avg_pool2d(inner, 2)
        last = 4 if place else 3
        y = (normalised(convolved(inner, f"{first + place}.inner.{last}")) + y).relu()
    assert y.shape[-1] == image_size // pooled // 8
    expected = F.linear(y.mean((2, 3)), values["classifier.weight"], values["classifier.bias"])
    torch.testing.assert_close(network(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("image_size", "side"), [(64, 64), (128, 64), (224, 56)])
def test_stem_of_a_sized_resnet(image_size, side):
    """Map side that the first stage sees: as the released code, by torchvision's own stem where it is the same."""
    with seeded(3):
        network = ResNet18(4, image_size, width=8, stem="sized", norm="batch").eval()
        x = torch.randn(2, 3, image_size, image_size)
    first = 3 if image_size <= 64 else 4
    assert network.features[:first](x).shape == (2, 8, side, side)
    if image_size == 224:
        theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], 4)
        theirs = torch.nn.Sequential(theirs.maxpool)
        torch.testing.assert_close(network.features[3](x), theirs(x), atol=0, rtol=0)


def test_convolutions_start_by_their_fan_out():
    with seeded(4):
        weight = ResNetAP10(4, 32).features[6].inner[4].weight  # the last stage
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("norm", "kind"), [("batch", torch.nn.BatchNorm2d), ("none", None)])
def test_convnet_norms(norm, kind):
    kinds = {type(module) for module in ConvNet(10, 32, width=8, norm=norm).features}
    assert kinds - {torch.nn.Conv2d, torch.nn.ReLU, torch.nn.AvgPool2d} == ({kind} if kind else set())


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_network(name):
    built = []
    for seed in (3, 3, 4):
        with seeded(seed, "network"):
            built.append(torch.nn.utils.parameters_to_vector(SMALL[name](10, 32).parameters()))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


@pytest.mark.parametrize("name", SMALL)
def test_parameter_gradients_are_differentiable_in_the_images(name):
    """What gradient matching needs, against central differences along a random direction (relative 1e-5)."""
    with seeded(5):
        network = SMALL[name](3, 32).double().eval()
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        direction = torch.randn_like(x)
    parameters = list(network.parameters())

    def squared_gradient(images):
        loss = F.cross_entropy(network(images), torch.tensor([0, 2]))
        return sum(g.square().sum() for g in torch.autograd.grad(loss, parameters, create_graph=True))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(squared_gradient(x), x)
    step = 1e-6
    change = squared_gradient(x + step * direction) - squared_gradient(x - step * direction)
    torch.testing.assert_close(
        (gradient * direction).sum(), (change / (2 * step)).detach(), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: ConvNet(10, 16),
            "ConvNet: image_size 16 is too small for the networks; set the data's image_size",
        ),
        (lambda: VGG11(10, 31), "VGG11: image_size 31 is too small .* to 32 or more"),
        (lambda: AlexNet(10, 0), "AlexNet: image_size 0 is too small"),
        (lambda: ResNet18(0, 32), "ResNet18: num_classes is 0; give a whole number of 1 or more"),
        (lambda: ConvNet(10, 32, width=0), "ConvNet: width is 0; give a whole number of 1 or more"),
        (lambda: ConvNet(10, 32, depth=0), "ConvNet: depth is 0; give a whole number of 1 or more"),
        (
            lambda: ConvNet(10, 48, depth=6),
            r"ConvNet: depth 6 halves a 48 px image below one pixel; use depth 5 or less \(None takes 3\)",
        ),
        (
            lambda: ViT(10, 32, patch_size=5),
            r"ViT: patch_size 5 does not divide image_size 32; give one of \[1, 2, 4, 8, 16\]",
        ),
        (lambda: ViT(10, 50), r"patch_size 6 does not divide image_size 50; give one of \[1, 2, 5, 10, 25\]"),
        (lambda: ViT(10, 32, dim=20), "ViT: heads 8 does not divide dim 20; set dim to a multiple of heads"),
        (lambda: ViT(10, 32, dropout=1.0), "ViT: dropout is 1.0; give a probability from 0"),
        (lambda: ViT(10, 32, depth=-1), "ViT: depth is -1; give a whole number of 1 or more"),
    ],
)
def test_unusable_sizes_are_refused_with_the_cure(build, text):
    with pytest.raises(UserError, match=text):
        build()
