"""AlexNet as the distillation papers use it: five convolutions, no normalisation, one linear layer."""

from typing import final

from torch import Tensor, nn

from ldd.networks.base import Network, check_sizes


@final
class AlexNet(Network):
    """Five convolutions (the first two 5x5) with three 2x2 max poolings; no dropout, no hidden linear layers.

    2.33 M parameters for 10 classes at 128 px, 3.81 M at 256 px: the linear layer sees a map of side
    image_size / 8.

    Args:
        num_classes: K.
        image_size: height and width in pixels, at least 32.
        width: channels of the first convolution; the others have 1.5, 2, 1.5 and 1.5 times as many.

    Raises:
        UserError: an image size below 32 px or a width below 1.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 128) -> None:
        super().__init__()
        check_sizes("AlexNet", num_classes, image_size, width=width)
        middle, widest = width * 3 // 2, width * 2
        self.features = nn.Sequential(
            nn.Conv2d(3, width, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, middle, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(middle, widest, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(widest, middle, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, middle, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(middle * (image_size // 8) ** 2, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Flattened convolutional features (N, F), F = 1.5 width (image_size / 8)^2."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]
