"""ResNetAP-10: IDC's residual network, which halves its maps by average pooling instead of strides."""

from typing import final

from torch import Tensor, nn

from ldd.networks.base import Network, check_sizes
from ldd.networks.resnet import NORMS, MakeNorm, Norm, init_fan_out, stem


class _Block(nn.Module):
    """Adds two 3x3 convolutions to a shortcut; halves the map where `halve`."""

    def __init__(self, channels_in: int, channels: int, halve: bool, norm: MakeNorm) -> None:
        super().__init__()
        pool = [nn.AvgPool2d(2)] if halve else []
        self.inner = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
            *pool,
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm(channels),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), *pool, norm(channels))
            if halve
            else nn.Identity()
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.inner(x) + self.shortcut(x))  # type: ignore[no-any-return]


@final
class ResNetAP10(Network):
    """ResNet-10 with average pooling in the place of strides (IDC, arXiv 2205.14959, released code).

    One block per stage, and a stem that grows with the images: 3x3 up to 64 px; with 2x2 average pooling behind it up
    to 128 px; 7x7 with 4x4 average pooling above. 4.90 M parameters for 10 classes up to 128 px, 4.91 M above.

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        width: channels of the stem and the first stage; the last stage has 8 times as many.
        norm: `instance` (one group per channel, affine; as IDC and its successors evaluate) or `batch`.

    Raises:
        UserError: an image size below 32 px or a width below 1.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        check_sizes("ResNetAP10", num_classes, image_size, width=width)
        make = NORMS[norm]
        self.features = nn.Sequential(
            *stem(image_size, width, make, wide_stride=1, pools=(nn.AvgPool2d(2), nn.AvgPool2d(4))),
            _Block(width, width, False, make),
            _Block(width, 2 * width, True, make),
            _Block(2 * width, 4 * width, True, make),
            _Block(4 * width, 8 * width, True, make),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(8 * width, num_classes)
        init_fan_out(self)

    def embed(self, x: Tensor) -> Tensor:
        """Globally averaged features (N, 8 width)."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]
