"""ConvNet: the network most distillation papers match and test on."""

from typing import Literal, final

from torch import Tensor, nn

from ldd.errors import UserError
from ldd.networks.base import Network, check_sizes


@final
class ConvNet(Network):
    """`depth` blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling, then one linear layer.

    The form used by DC (arXiv 2006.05929), DM (2110.04181), MTT (2203.11932), GLaD (2305.01649) and LD3M
    (2403.03881): 615,690 parameters for 10 classes at 128 px (depth 5), 763,530 at 256 px (depth 6).

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        depth: number of blocks; each halves the map. None takes the depth that leaves a 4x4 map (3 at 32 px,
            4 at 64, 5 at 128, 6 at 256; at other sizes the smallest map of at least 4x4).
        width: channels of every block.
        norm: `instance` (one group per channel, affine; the published choice), `batch` or `none`.

    Raises:
        UserError: an image size below 32 px, or more blocks than the image can be halved.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        depth: int | None = None,
        width: int = 128,
        norm: Literal["instance", "batch", "none"] = "instance",
    ) -> None:
        super().__init__()
        deepest = image_size.bit_length() - 1  # floor(log2(image_size)): the last map is then 1x1
        depth = deepest - 2 if depth is None else depth
        check_sizes("ConvNet", num_classes, image_size, depth=depth, width=width)
        if depth > deepest:
            raise UserError(
                f"ConvNet: depth {depth} halves a {image_size} px image below one pixel; "
                f"use depth {deepest} or less (None takes {deepest - 2})"
            )
        blocks: list[nn.Module] = []
        for channels in [3] + [width] * (depth - 1):
            blocks.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
            if norm == "instance":
                blocks.append(nn.GroupNorm(width, width))  # 2 to 4 times faster than InstanceNorm2d on CPU
            elif norm == "batch":
                blocks.append(nn.BatchNorm2d(width))
            blocks += [nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (image_size >> depth) ** 2, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Flattened convolutional features (N, F); F = 2048 at the default width and a 4x4 last map."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]
