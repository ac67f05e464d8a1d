"""ResNet-18 with the stem for small images and instance normalisation."""

from typing import final

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ldd.networks.base import Network, check_sizes


def _instance_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


def _stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Two basic blocks; the first changes width and resolution, its shortcut too where needed."""
    shortcut: nn.Module | None = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False),
            _instance_norm(channels),
        )
    return nn.Sequential(
        BasicBlock(channels_in, channels, stride, shortcut, norm_layer=_instance_norm),
        BasicBlock(channels, channels, norm_layer=_instance_norm),
    )


@final
class ResNet18(Network):
    """ResNet-18 (arXiv 1512.03385) with the stem for small images: 3x3, stride 1, no max pooling.

    Instance normalisation (one group per channel, affine) throughout, global average pooling: 11.17 M
    parameters for 10 classes at any image size.

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        width: channels of the stem and the first stage; the last stage has 8 times as many.

    Raises:
        UserError: an image size below 32 px or a width below 1.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        check_sizes("ResNet18", num_classes, image_size, width=width)
        self.features = nn.Sequential(
            nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False),
            _instance_norm(width),
            nn.ReLU(inplace=True),
            _stage(width, width, stride=1),
            _stage(width, 2 * width, stride=2),
            _stage(2 * width, 4 * width, stride=2),
            _stage(4 * width, 8 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Globally averaged features (N, 8 width)."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]
