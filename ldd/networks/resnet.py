"""ResNet-18 for small and for large images, with instance or batch normalisation."""

from collections.abc import Callable
from functools import partial
from typing import Literal, final

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ldd.networks.base import Network, check_sizes

Norm = Literal["instance", "batch"]
"""`instance`: one group per channel, affine; `batch`: with running statistics."""

MakeNorm = Callable[[int], nn.Module]


def instance_norm(channels: int) -> nn.Module:
    """Return a norm with one group per channel, affine."""
    return nn.GroupNorm(channels, channels)


NORMS: dict[Norm, MakeNorm] = {"instance": instance_norm, "batch": nn.BatchNorm2d}


def stem(
    image_size: int, width: int, norm: MakeNorm, wide_stride: int, pools: tuple[nn.Module, nn.Module]
) -> list[nn.Module]:
    """Return the first layers of IDC's residual networks (arXiv 2205.14959, released code), which grow with the images.

    Up to 64 px a 3x3 convolution; up to 128 px the same, then pooling; above a 7x7 convolution, then pooling.
    """
    wide = image_size > 128
    size, stride = (7, wide_stride) if wide else (3, 1)
    layers = [
        nn.Conv2d(3, width, size, stride=stride, padding=size // 2, bias=False),
        norm(width),
        nn.ReLU(inplace=True),
    ]
    return layers if image_size <= 64 else [*layers, pools[wide]]


def init_fan_out(network: nn.Module) -> None:
    """Convolutions normal with variance 2 / (k^2 x channels out) (He et al., arXiv 1502.01852); gains 1, shifts 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(channels_in: int, channels: int, stride: int, norm: MakeNorm) -> nn.Sequential:
    """Return two basic blocks; the first changes width and resolution, its shortcut too where needed."""
    shortcut: nn.Module | None = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False),
            norm(channels),
        )
    return nn.Sequential(
        BasicBlock(channels_in, channels, stride, shortcut, norm_layer=norm),
        BasicBlock(channels, channels, norm_layer=norm),
    )


@final
class ResNet18(Network):
    """ResNet-18 (arXiv 1512.03385), by default with the stem for small images: 3x3, stride 1, no max pooling.

    Global average pooling: 11.17 M parameters for 10 classes at any image size.

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        width: channels of the stem and the first stage; the last stage has 8 times as many.
        norm: `instance` (one group per channel, affine) or `batch`, throughout.
        stem: `small` at any size, or `sized`: up to 64 px the same, up to 128 px with 3x3 max pooling of stride 2
            behind it, above the 7x7 convolution of stride 2 and the pooling of the original (released IDC code).
        init: `default` of the layers, or `fan_out` (released IDC code; He et al.) for the convolutions.

    Raises:
        UserError: an image size below 32 px or a width below 1.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        width: int = 64,
        norm: Norm = "instance",
        stem: Literal["small", "sized"] = "small",
        init: Literal["default", "fan_out"] = "default",
    ) -> None:
        super().__init__()
        check_sizes("ResNet18", num_classes, image_size, width=width)
        make = NORMS[norm]
        self.features = nn.Sequential(
            *_stem(image_size if stem == "sized" else 0, width, make),
            _stage(width, width, 1, make),
            _stage(width, 2 * width, 2, make),
            _stage(2 * width, 4 * width, 2, make),
            _stage(4 * width, 8 * width, 2, make),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(8 * width, num_classes)
        if init == "fan_out":
            init_fan_out(self)

    def embed(self, x: Tensor) -> Tensor:
        """Globally averaged features (N, 8 width)."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]


def _stem(image_size: int, width: int, norm: MakeNorm) -> list[nn.Module]:
    pool = partial(nn.MaxPool2d, kernel_size=3, stride=2, padding=1)
    return stem(image_size, width, norm, wide_stride=2, pools=(pool(), pool()))
