"""Pruning by how networks learn an image: error early in training, gradient at initialisation, forgetting."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ldd.data.pruning.base import CACHE_DIR, Order, Scope
from ldd.data.pruning.trained import TrainedPruner
from ldd.errors import UserError, check_at_least
from ldd.images import DataSpec, Images
from ldd.networks import Network
from ldd.networks.scoring import ScoringNetwork
from ldd.runtime.devices import find_device


class EnsemblePruner(TrainedPruner):
    """Ranks images by the mean of a criterion over several networks, each of them a piece."""

    description: ClassVar[str]
    """The criterion in one line with {} for the number of networks; scores are kept under it."""

    def __init__(
        self,
        keep: float,
        order: Order = "hard",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        networks: int = 10,
        training: ScoringNetwork = ScoringNetwork(),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, training, cache_dir)
        check_at_least(1, "pruner", networks=networks)
        self.networks = networks

    @property
    def pieces(self) -> int:
        """One for each network."""
        return self.networks

    def settings(self) -> str:
        """Return the criterion and its number of networks."""
        return self.description.format(self.networks)


class EL2NPruner(EnsemblePruner):
    """Ranks images by the length of the error vector early in training (Paul et al., NeurIPS 2021, arXiv 2107.07075).

    The score is the mean over networks of |softmax(logits) - one-hot label|; published with 10 networks after 20 of 200
    epochs, keeping the hard images.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        networks: how many are trained, 1 or more.
        training: the network and how it is trained; its epochs are those after which it is asked.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range.
    """

    columns = ("el2n",)
    description = "el2n over {} networks,"

    def __init__(
        self,
        keep: float,
        order: Order = "hard",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        networks: int = 10,
        training: ScoringNetwork = ScoringNetwork(epochs=2),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, networks, training, cache_dir)

    def measure(self, piece: int, images: Images, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Return error lengths (M, 1) under one network."""
        network = self.training.trained(images, labels, spec, seed, "el2n", piece)
        return self.training.judged(network, images, labels, spec, error_lengths)[:, None]


def error_lengths(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) |softmax(logits) - one-hot label| of logits (N, K), between 0 and the square root of 2."""
    truth = F.one_hot(labels, logits.shape[1])
    lengths: Tensor = torch.linalg.vector_norm(logits.softmax(1) - truth, dim=1)
    return lengths


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

    def measure(self, piece: int, images: Images, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Return gradient lengths (M, 1) under one network."""
        network = self.training.build(spec, seed, "grand", piece).eval()
        device = find_device(self.training.device)
        lengths = [
            gradient_lengths(network, spec.as_input(batch.to(device)), truth.to(device)).cpu()
            for batch, truth in zip(images.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True)
        ]
        return torch.cat(lengths)[:, None]


def gradient_lengths(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) the length of each image's own gradient of the cross-entropy with respect to all parameters."""
    with torch.inference_mode(False):
        weights = {name: value.detach() for name, value in network.named_parameters()}

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits: Tensor = functional_call(network, parameters, (image[None],))
            return F.cross_entropy(logits, label[None])

        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images.clone(), labels.clone())
        squares = [value.flatten(1).square().sum(1) for value in gradients.values()]
    return torch.stack(squares).sum(0).sqrt()


class ForgettingPruner(EnsemblePruner):
    """Ranks images by forgetting events (Toneva et al., ICLR 2019, arXiv 1812.05159); published keeping the hard ones.

    An event is an image that was classified rightly after one epoch and wrongly after the next; an image that is never
    right counts as forgotten more often than any other. The original looks when an image is in a batch; here all
    images are looked at after each epoch, in evaluation mode.

    Args:
        keep: share kept, in (0, 1]; exactly floor(keep x n) of n images.
        order: `easy` keeps the lowest scores, `hard` the highest.
        scope: `class` keeps the share of every class, `global` of all images together.
        skip_easiest: share of the easiest images left out first (a window); only with order `easy`.
        networks: how many are trained, 1 or more; the score is the mean.
        training: the network and how it is trained, for 2 epochs or more.
        cache_dir: folder of the scores; null keeps none.

    Raises:
        UserError: a setting is outside its range.
    """

    columns = ("forgetting",)
    description = "forgetting of {} networks,"

    def __init__(
        self,
        keep: float,
        order: Order = "hard",
        scope: Scope = "class",
        skip_easiest: float = 0.0,
        networks: int = 1,
        training: ScoringNetwork = ScoringNetwork(epochs=20),  # noqa: B008 - frozen
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(keep, order, scope, skip_easiest, networks, training, cache_dir)
        if training.epochs < 2:
            raise UserError(f"training.epochs={training.epochs}: nothing can be forgotten in fewer than 2")

    def measure(self, piece: int, images: Images, labels: Tensor, spec: DataSpec, seed: int) -> Tensor:
        """Return forgetting events (M, 1) of one network."""
        network = self.training.build(spec, seed, "forgetting", piece)
        history: list[Tensor] = []

        def look(epoch: int, loss: Tensor) -> None:
            right = self.training.judged(
                network, images, labels, spec, lambda out, truth: out.argmax(1) == truth
            )
            history.append(right)

        self.training.train(network, images, labels, spec, seed, "forgetting", piece, on_epoch=look)
        return forgetting_events(torch.stack(history)).double()[:, None]


def forgetting_events(right: Tensor) -> Tensor:
    """Return (M,) events of a history (epochs, M) bool; for an image that is never right the number of epochs."""
    events = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), events, len(right))
