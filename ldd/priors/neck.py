"""A small trained network in front of a frozen autoencoder."""

from collections.abc import Iterable
from typing import final

from torch import Tensor, nn

from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.base import DirectPrior
from ldd.priors.deconvolution import check_image_size, deconvolution, group_norm, small_channels


@final
class NeckPrior(DirectPrior):
    """D3's small decoder in front of a frozen autoencoder: it makes the latents that the autoencoder decodes.

    Codes stay as small as D3's, the trained part is shared by all classes, and the frozen part knows what images look
    like. The neck ends in a convolution without tanh and normalises by groups. Its codes have no encoder.

    Args:
        path_or_hub_id: the autoencoder, as for `AutoencoderPrior`.
        image_size: height and width in pixels; None takes the autoencoder's own.
        width: channels of the neck's 2 x 2 map, a multiple of 8. Its share of the storage falls with the number of
            classes: at 128 px (latents 3 x 32 x 32) widths of 32, 64, 128, 256 make 19,535, 61,083, 210,227 and
            772,707 parameters with 64 numbers a code.
        latent_width: numbers of a code.

    Raises:
        UserError: see `AutoencoderPrior`; latents whose side is not a power of two of at least 8; a width that is not
            a multiple of 8, a latent width below 1.
    """

    can_encode = False

    def __init__(
        self, path_or_hub_id: str, image_size: int | None = None, width: int = 64, latent_width: int = 64
    ) -> None:
        super().__init__()
        self.autoencoder = AutoencoderPrior(path_or_hub_id, image_size)
        channels, side, _ = self.autoencoder.latent_shape
        check_image_size(side, "the side of the autoencoder's latents")
        self.neck = deconvolution(latent_width, small_channels(width, side), 4, group_norm, channels)
        self.image_size = self.autoencoder.image_size
        self.latent_shape = (latent_width, 1, 1)
        self.licence = self.autoencoder.licence
        self.eval()

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the neck's weights."""
        return self.neck.parameters()

    def networks(self) -> Iterable[nn.Module]:
        """Return the decoder of the frozen autoencoder."""
        return self.autoencoder.networks()

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of codes (N, latent_width, 1, 1), not clamped."""
        return self.autoencoder.decode(self.neck(latents).to(latents.dtype))
