"""VGG-11 as the distillation papers use it: instance normalisation and one linear layer."""

from typing import final

from torch import Tensor, nn

from ldd.networks.base import Network, check_sizes

_STAGES = (
    (1,),
    (2,),
    (4, 4),
    (8, 8),
    (8, 8),
)  # channels in units of `width`; each stage ends in a max pooling


@final
class VGG11(Network):
    """The eight 3x3 convolutions of VGG-11 (arXiv 1409.1556, configuration A), each instance-normalised.

    The hidden linear layers are left out; an adaptive 7x7 max pooling feeds one linear layer: 9.48 M
    parameters for 10 classes at any image size. Below 224 px the 7x7 map repeats the values of a smaller one.

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        width: channels of the first convolution; the last have 8 times as many.

    Raises:
        UserError: an image size below 32 px or a width below 1.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        check_sizes("VGG11", num_classes, image_size, width=width)
        layers: list[nn.Module] = []
        channels = 3
        for stage in _STAGES:
            for multiple in stage:
                layers += [
                    nn.Conv2d(channels, width * multiple, kernel_size=3, padding=1),
                    nn.GroupNorm(width * multiple, width * multiple),
                    nn.ReLU(inplace=True),
                ]
                channels = width * multiple
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(7))
        self.classifier = nn.Linear(channels * 7 * 7, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Flattened 7x7 map (N, 392 width)."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]
