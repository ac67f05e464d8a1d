"""Prior: what every generator of images offers to codes, initialisers and objectives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.reverse import Moment
from ldd.runtime.precision import without_autocast
from ldd.runtime.tables import facts_table

Guide = Callable[[Tensor, int, Tensor], Tensor]
"""`guide(x0, k, rows)` -> correction added to the predicted clean latents (N, c, h, w) at step k."""


class StateGuide(ABC):
    """A guide that moves the noisy states themselves, after each step of sampling."""

    def __call__(self, x0: Tensor, k: int, rows: Tensor) -> Tensor:
        """Return no correction of the predicted clean latents, as a `Guide` would."""
        return x0.new_zeros(())

    @abstractmethod
    def move(self, at: Moment) -> Tensor:
        """Return what is added to the state (N, c, h, w) in which a step ends."""


class Prior(nn.Module, ABC):
    """A frozen generator of images from latents and class conditions.

    Subclasses are final: they implement the abstract methods once and are never subclassed in turn. A prior is in
    eval mode, takes no gradients for its weights, is differentiable in latents and conditioning, and stays out of
    checkpoints. The parameters in `trainable` are the exception: D3's decoders and necks.

    Attributes:
        image_size: height and width of decoded images in pixels.
        latent_shape: (c, h, w).
        num_steps: S, reverse-process steps `denoise` takes; with 0 it returns its latents as they are.
        licence: terms of the weights, copied into every artefact's manifest.
        can_encode: whether there is an encoder; without one `encode` is refused.
        can_sample: whether there is a diffusion model; without one `sample` and `invert` are refused.
        reads_latents: whether the images depend on Z; a chain that begins at pure noise may not.
        batch_dependent: whether a decoded image depends on those decoded with it.
        identity: what `ldd.artefact.identity.identify` said of the weights as loaded; None where they are still that.
    """

    image_size: int
    latent_shape: tuple[int, int, int]
    num_steps: int
    licence: str
    can_encode: bool = True
    can_sample: bool = True
    reads_latents: bool = True
    batch_dependent: bool = False
    identity: dict[str, Any] | None = None

    @final
    def __repr__(self) -> str:
        """Return one line; `print(nn.Module.__repr__(prior))` lists the layers."""
        facts = self._shown()
        steps = f", {facts['steps']} steps" * bool(self.num_steps)
        return (
            f"{type(self).__name__}({facts['images']}, latents of {facts['latents']}{steps}, "
            f"{facts['weights']} weights, licence: {self.licence})"
        )

    @final
    def _repr_html_(self) -> str:
        """For a notebook."""
        return facts_table(type(self).__name__, self._shown())._repr_html_()

    def _shown(self) -> dict[str, str]:
        return {
            "images": f"{self.image_size} x {self.image_size} px",
            "latents": " x ".join(map(str, self.latent_shape)),
            "steps": str(self.num_steps),
            "weights": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "licence": self.licence,
        }

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the parameters that are optimised, checkpointed and exported with the codes; none if frozen."""
        return ()

    def networks(self) -> Iterable[nn.Module]:
        """Return the frozen networks that a step calls; none by default.

        `Distiller(compile=...)` compiles them, and `Distiller(prior_precision=...)` casts their weights: they are to be
        called through `in_own_type`.
        """
        return ()

    @final
    def to_bfloat16(self) -> None:
        """Cast the weights of the `networks` to bfloat16, once, but for their last layers; all else stays as it is.

        The last layer takes and makes float32, so that the answer itself is not rounded, which is a tenth to a fifth of
        the images' error. It costs no cast: the one on the way out comes before the layer instead of after it.

        Raises:
            UserError: there is no frozen network.
        """
        networks = list(self.networks())
        if not networks:
            raise UserError(
                f"prior_precision (bfloat16): {type(self).__name__} has no frozen network to cast; set float32"
            )
        for network in networks:
            last = last_layer(network)
            exact = {name: value.clone() for name, value in last.state_dict().items()}
            nn.Module.to(network, torch.bfloat16)  # not diffusers' own, which warns of a list that is empty
            last.float().load_state_dict(exact)
            last.register_forward_pre_hook(_raised)

    @final
    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters of `trainable` by name."""
        wanted = {id(parameter) for parameter in self.trainable()}
        return {name: value for name, value in self.named_parameters() if id(value) in wanted}

    @final
    def reset_trained(self) -> None:
        """Draw the trainable weights anew, from torch's global generator (`ldd.runtime.seeding.seeded`)."""
        wanted = {id(parameter) for parameter in self.trainable()}
        for module in self.modules():
            if any(id(parameter) in wanted for parameter in module.parameters(recurse=False)):
                reset: Any = module.reset_parameters  # every layer of torch has it
                reset()

    @final
    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trainable weights to an artefact's (`DistilledSet.decoder`).

        Raises:
            UserError: they belong to another decoder.
        """
        own = self.trained()
        shapes = {name: list(value.shape) for name, value in own.items()}
        given = {name: list(value.shape) for name, value in tensors.items()}
        if shapes != given:
            wrong = next(name for name in {**shapes, **given} if shapes.get(name) != given.get(name))
            raise UserError(
                f"decoder: {wrong} is {given.get(wrong, 'missing')}, this {type(self).__name__} needs "
                f"{shapes.get(wrong, 'none')}; build the prior as the run that made the set did"
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])

    @abstractmethod
    def rows(self, classes: Sequence[ClassInfo]) -> Tensor:
        """Return the rows (K,) int64 of this prior's class table for the data's classes.

        Raises:
            UserError: a class this prior does not know; the message lists the choices.
        """

    @abstractmethod
    def embed(self, rows: Tensor) -> Tensor:
        """Return the conditioning (N, L, D) of class-table rows (N,); L = 0 for an unconditional prior."""

    @abstractmethod
    def null(self, n: int) -> Tensor:
        """Return the conditioning (n, L, D) of the null class, used by classifier-free guidance."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (N, c, h, w) of images in [-1, 1]: the posterior's mode, not quantised, no gradient."""

    def draw_encoding(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a draw (N, c, h, w) of the encoder's posterior; without a posterior what `encode` does."""
        return self.encode(images)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, C, H, W) around [-1, 1], not clamped; differentiable."""

    @abstractmethod
    def denoise(self, latents: Tensor, conditioning: Tensor, noise: Tensor) -> Tensor:
        """Run the modified reverse process, differentiable in Z and c.

        Args:
            latents: Z, (N, c, h, w).
            conditioning: c, (N, L, D).
            noise: n, (N, c, h, w), standard normal.

        Returns:
            Clean latents (N, c, h, w).
        """

    def denoise_checkpointed(
        self, latents: Tensor, conditioning: Tensor, noise: Tensor, calls: int
    ) -> Tensor:
        """Return what `denoise` does, with activation checkpoints over `calls` of its `num_steps` network calls.

        Gradients have the same bits. A prior that does not override it has one checkpoint over all of them.
        """
        if not calls:
            return self.denoise(latents, conditioning, noise)
        denoised: Tensor = checkpoint(
            self.denoise, latents, conditioning, noise, use_reentrant=False, preserve_rng_state=False
        )
        return denoised

    @abstractmethod
    def sample(
        self,
        rows: Tensor,
        generator: torch.Generator,
        *,
        num_steps: int = 50,
        guidance_scale: float | None = None,
        start: Tensor | None = None,
        state: Tensor | None = None,
        strength: float = 1.0,
        guide: Guide | None = None,
        ancestral: bool = False,
    ) -> Tensor:
        """Generate latents (N, c, h, w) for class-table rows (N,) by ordinary DDIM, without gradient.

        Args:
            rows: (N,) class-table rows.
            generator: source of the initial noise.
            num_steps: DDIM steps.
            guidance_scale: classifier-free guidance; None takes the prior's own.
            start: clean latents (N, c, h, w) to start from, noised to `strength` of the schedule.
            state: noisy latents (N, c, h, w) to continue from, as `invert` of the same strength returns them.
            strength: share of the schedule that is run when `start` or `state` is given, in (0, 1].
            guide: correction of the predicted clean latents at each step.
            ancestral: draw new noise at each step, see `ldd.priors.reverse.ddim_sample`.
        """

    @abstractmethod
    def invert(
        self,
        latents: Tensor,
        conditioning: Tensor,
        num_steps: int,
        strength: float = 1.0,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Return the noisy latents (N, c, h, w) from which DDIM would generate clean `latents`.

        Args:
            latents: clean, (N, c, h, w).
            conditioning: c, (N, L, D).
            num_steps: DDIM steps of the whole schedule.
            strength: share of the schedule that is inverted, in (0, 1]; 1 ends at the noise.
            guidance_scale: of classifier-free guidance.
        """


class DirectPrior(Prior, ABC):
    """A prior that only encodes and decodes: `denoise` returns its latents, conditioning is empty (N, 0, 0).

    Its final subclasses implement `decode`, and `encode` or `can_encode = False`.
    """

    num_steps = 0
    can_sample = False

    def rows(self, classes: Sequence[ClassInfo]) -> Tensor:
        """Return the labels (K,) int64: without a class table every class is known and its own row."""
        return torch.tensor([info.label for info in classes], dtype=torch.int64)

    def embed(self, rows: Tensor) -> Tensor:
        """Return empty conditioning (N, 0, 0)."""
        return self.null(len(rows)).to(rows.device)

    def null(self, n: int) -> Tensor:
        """Return empty conditioning (n, 0, 0)."""
        return torch.zeros(n, 0, 0)

    def encode(self, images: Tensor) -> Tensor:
        """Raise a UserError; a prior with an encoder overrides it."""
        raise UserError(
            f"{type(self).__name__} has no encoder; start codes with ldd.initializers.GaussianLatents, or choose "
            "another prior"
        )

    def denoise(self, latents: Tensor, conditioning: Tensor, noise: Tensor) -> Tensor:
        """Return the latents."""
        return latents

    def quantise(self, latents: Tensor) -> Tensor:
        """Return the nearest codes of latents (N, c, h, w), straight-through; without a codebook the latents."""
        return latents

    def sample(self, *arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401 - of `Prior.sample`
        """Raise a UserError: there is nothing to sample from."""
        raise UserError(self._no_diffusion("sample"))

    def invert(self, *arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401 - of `Prior.invert`
        """Raise a UserError: there is no noise to end at."""
        raise UserError(self._no_diffusion("invert"))

    def _no_diffusion(self, wish: str) -> str:
        return (
            f"{type(self).__name__} has no diffusion model and cannot {wish}; choose a LatentDiffusionPrior"
        )


def last_layer(network: nn.Module) -> nn.Module:
    """Return the layer that makes a network's answer: the last one with weights, in the order of its definition."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]


def _raised(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def in_own_type(network: nn.Module, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `call(*inputs)`, which calls the network, with inputs of the type of its weights if these are bfloat16.

    They are cast at the door, outside of autocast, which would cast again; what comes back has the type of the first
    input.
    """
    if next(network.parameters()).dtype != torch.bfloat16:
        return call(*inputs)
    with without_autocast():
        return call(*(value.to(torch.bfloat16) for value in inputs)).to(inputs[0].dtype)


def compile_networks(prior: Prior, backend: str | None, mode: str | None = None) -> None:
    """Compile each of the prior's networks as one graph, when it is first called; without a backend do nothing.

    Raises:
        UserError: unknown backend or mode, a mode for another backend than inductor, or a prior without networks.
    """
    if backend is None:
        if mode is not None:
            raise UserError(f"compile_mode ({mode}) needs compile: inductor")
        return
    backends = torch.compiler.list_backends(exclude_tags=None)
    if backend not in backends:
        raise UserError(f"compile ({backend}) is not a backend; choose from {', '.join(backends)}, or null")
    modes = ["default", *torch._inductor.list_mode_options()] if mode is not None else []
    if mode is not None and (backend != "inductor" or mode not in modes):
        raise UserError(
            f"compile_mode ({mode}) is for compile: inductor, and one of {', '.join(dict.fromkeys(modes))}; or null"
        )
    networks = list(prior.networks())
    if not networks:
        raise UserError(f"compile ({backend}): {type(prior).__name__} has no network to compile; set null")
    for network in networks:
        network.compile(fullgraph=True, backend=backend, mode=mode)
