"""Pruning by the gradient that an image would give at the start of training."""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ldd.classes import DataSpec
from ldd.data.pruning.ensemble import EnsemblePruner
from ldd.networks import Network

_AT_ONCE = 16  # images whose gradients are held at one time, each as large as the network


class GraNdPruner(EnsemblePruner):
    """Ranks images by the length of their loss gradient (Paul et al., NeurIPS 2021, arXiv 2107.07075).

    The score is the mean over freshly initialised networks of |d cross-entropy / d weights|, all weights together, in
    evaluation mode; published with 10 networks, keeping the hard images.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        networks: how many are drawn, 1 or more.
        training: the network and its image size; nothing is trained.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range.
    """

    columns = ("grand",)
    description = "grand over {} networks at initialisation,"

    def measure(self, piece: int, images: Tensor, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Gradient lengths (M, 1) under one network."""
        network = self.training.build(spec, seed, "grand", piece).eval()
        batches = self.training.batches(images, spec, _AT_ONCE)
        lengths = [
            gradient_lengths(network, batch, wanted.to(batch.device)).cpu()
            for batch, wanted in zip(batches, labels.split(_AT_ONCE), strict=True)
        ]
        return torch.cat(lengths)[:, None]


def gradient_lengths(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """(N,) length of each image's own gradient of the cross-entropy with respect to all parameters.

    Args:
        network: in evaluation mode.
        images: (N, C, H, W), as it takes them.
        labels: (N,).
    """
    with torch.inference_mode(False):
        weights = {name: value.detach() for name, value in network.named_parameters()}

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits: Tensor = functional_call(network, parameters, (image[None],))
            return F.cross_entropy(logits, label[None])

        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images.clone(), labels.clone())
        squares = [value.flatten(1).square().sum(1) for value in gradients.values()]
    return torch.stack(squares).sum(0).sqrt()
