"""The distiller: synthetic codes, a frozen prior and an objective in one LightningModule."""

import time
from contextlib import ExitStack
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.codes import CodesFactory, PointCodes
from ldd.data.datamodule import DistillationData
from ldd.data.real import RealImages
from ldd.distiller.finite import FiniteCheck
from ldd.distiller.memory import SHARE_FOR_REAL_IMAGES, Checkpointing, ChunkSize, MemoryPlanner
from ldd.distiller.record import NOT_KEPT, RunLedger, RunRecord, describe, shown, shown_as_table
from ldd.distiller.rediffusion import Rediffusion, rediffuse
from ldd.distiller.settings import check_sizes, check_trainer
from ldd.distiller.step import DistillationStep
from ldd.distiller.synthesis import Quirks, Synthesis, new_codes
from ldd.errors import UserError
from ldd.experts.trajectories import ExpertNeed
from ldd.images import DataSpec
from ldd.initializers import GaussianLatents, Initializer, RealEncodings
from ldd.labels.base import Labeller, Labels
from ldd.objectives import CODES, DECODER, Objective, Term
from ldd.priors import Prior, compile_networks
from ldd.runtime import seeding
from ldd.runtime.devices import free_bytes
from ldd.runtime.ledger import DECODES, LABEL, REDIFFUSE
from ldd.runtime.precision import MatmulPrecision, multiplying, without_autocast
from ldd.runtime.ranks import rank_zero_warn, sum_gradients
from ldd.runtime.trainer import own_bar, tell_of_evaluation


class Distiller(L.LightningModule):
    """Optimises codes so that the images a frozen prior makes of them match the real ones.

    Args:
        prior: frozen generator; its weights take no gradient and stay out of checkpoints. Those that it calls
            trainable (D3's decoders) start at random, are optimised with the codes, checkpointed and exported.
        objective: what is matched, with its learning rates.
        data_spec: classes, image size and normalisation, `DistillationData.spec` (linked on the command line).
        images_per_class: IPC; codes per class (with `GaussianCodes` the distributions, each shown by its mean).
        codes: how codes are parameterised.
        initializer: where codes start; None takes `RealEncodings`, or `GaussianLatents` where the prior cannot encode.
        chunk_size: images per decoding pass; "auto" takes the most that fits.
        checkpointing: compute activations again in backward; "auto" for as many calls of the prior's network as memory
            asks, "always" for all of them and for decoding. Gradients have the same bits.
        channels_last: lay images and features out by pixel, not by channel; the same up to rounding. Which is faster
            depends on device, networks and precision: measure.
        compile: backend of `torch.compile` for the prior's networks ("inductor"), each as one graph; null for none. The
            same up to rounding; the first step takes minutes.
        compile_mode: of inductor: `reduce-overhead` replays a step's launches (CUDA graphs), which are the limit at few
            images; null for its default.
        prior_precision: type of the prior's frozen networks. `bfloat16` casts their weights once, and inputs as they
            enter, outside of whatever autocast the run has: half the memory, no casts of weights at every call. Codes,
            the chain between the network's calls, quantisation and the last layer of each network stay float32.
        matmul_precision: of products of float32 matrices in steps and evaluation; convolutions are not concerned.
            `auto` is `high` on CUDA (TF32, on tensor cores) and exact elsewhere; the manifest says it unless exact.
        quirks: defects of the released code to reproduce; none by default.
        labels: where the set's soft labels come from; None leaves it with hard ones, which distillation itself uses.
        rediffusion: how a diffusion model makes the finished set's images anew; None leaves them as decoded.
        seed: of every draw (linked to `seed_everything` on the command line).

    Raises:
        UserError: sizes of data and prior that differ, an unknown class, IPC below 1, an unknown backend, a prior that
            has nothing to compile or to cast, or a chunk size for one whose images depend on those decoded with them.
    """

    num_steps_done: Tensor
    initialised: Tensor
    seconds: Tensor

    def __init__(
        self,
        prior: Prior,
        objective: Objective,
        data_spec: DataSpec,
        images_per_class: int = 1,
        codes: CodesFactory = PointCodes,
        initializer: Initializer | None = None,
        chunk_size: ChunkSize = "auto",
        checkpointing: Checkpointing = "auto",
        channels_last: bool = False,
        compile: str | None = None,
        compile_mode: str | None = None,
        prior_precision: Literal["float32", "bfloat16"] = "float32",
        matmul_precision: MatmulPrecision = "auto",
        quirks: Quirks = Quirks(),  # noqa: B008 - frozen
        labels: Labels | None = None,
        rediffusion: Rediffusion | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints leave the prior out; `on_load_checkpoint` checks the rest
        check_sizes(prior, data_spec, images_per_class)
        if rediffusion is not None:  # or the run would end with the error
            rediffusion.load_prior(prior, torch.device("cpu")).rows(data_spec.classes)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.prior = prior.to(memory_format=self.memory_format)  # its weights: the rest follows them
        self.prior_precision = prior_precision
        if prior_precision == "bfloat16":
            prior.identity = identify(prior)
            prior.to_bfloat16()
        compile_networks(prior, compile, compile_mode)
        self.objective = objective
        self.data_spec = data_spec
        self.images_per_class = images_per_class
        default = RealEncodings() if prior.can_encode else GaussianLatents()
        self.initializer = default if initializer is None else initializer
        self.labels = labels
        self.rediffusion = rediffusion
        self.labeller: Labeller | None = None
        self.seed = seed
        self.codes = new_codes(codes, prior, data_spec, images_per_class, seed)
        if self.codes.packing > 1 and (labels is not None or rediffusion is not None):
            raise UserError("model.codes: packed images are grids, which neither labels nor rediffusion take")
        self.synthesis = Synthesis(self.codes, prior, quirks, data_spec, seed)
        settings = (chunk_size, checkpointing, self.memory_format, compile, prior_precision)
        self.planner = MemoryPlanner(self.synthesis, objective, data_spec, *settings)
        self.ledger = RunLedger()
        self.register_buffer("num_steps_done", torch.tensor(0))
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("seconds", torch.tensor(0.0))
        self._number = 0  # num_steps_done, without asking the device
        self.finite = FiniteCheck(objective, self._step_undone)
        self._resident: tuple[RealImages, RealImages] | None = None
        self._last_set: tuple[int, DistilledSet] | None = None
        self._matmul_precision: MatmulPrecision = matmul_precision
        self._multiplying = ExitStack()
        self._record = RunRecord(prior, self.initializer, objective, data_spec)

    # One step: codes -> denoise -> decode (`Synthesis`) -> augment -> match (the objective) -> backward -> step.

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Take all terms of one step; the loader's batch is not read (a resumed loader starts over)."""
        started = time.perf_counter()
        trainer = self.trainer
        context = self.context(self._core_set(), self._number, trainer.global_rank, trainer.world_size)
        losses: list[Tensor] = []
        for term in self.objective.terms(context):
            for optimizer in self._optimizers.values():
                optimizer.zero_grad()
            with without_autocast():  # which would round what left it in the forward pass
                term.value.backward()
            names = self._stepping(term)
            parameters = [p for name in names for p in _parameters(self._optimizers[name])]
            sum_gradients(parameters)
            if not losses:  # all of this step is queued by now, and nothing is updated yet
                self.finite.settle()
                self.finite.keep(self._optimizers.values(), [self.num_steps_done, self.seconds])
            self.finite.before_step(term, parameters, self._number, trainer.world_size)
            for i, name in enumerate(names):
                self._step(name, count=not losses and i == 0)
            self.finite.after_step(parameters)
            losses.append(self._log(term))
        self.finite.end_step()
        self._log_value("loss", torch.stack(losses).sum(), prog_bar=True)
        for name, number in self.codes.statistics().items():
            self._log_value(name, number / trainer.world_size)  # the same on every rank
        self.num_steps_done += 1
        self._number += 1
        self.ledger.end_step(self.device)
        self.seconds += time.perf_counter() - started

    def context(self, real: RealImages, step: int, rank: int = 0, world_size: int = 1) -> DistillationStep:
        """Return the objective's view of training step `step`, from 0, on one rank of `world_size`."""
        of_run = (real, self.seed, self.planner, self.ledger, self.memory_format)
        return DistillationStep(self.synthesis, self.data_spec, *of_run, step, rank, world_size)

    def _core_set(self) -> RealImages:
        """Return the real images, on the device if they leave enough room there for everything else."""
        core_set = self._data.core_set
        if self._resident is None or self._resident[0] is not core_set:
            fits = core_set.nbytes <= SHARE_FOR_REAL_IMAGES * free_bytes(self.device)
            self._resident = core_set, core_set.to(self.device) if fits else core_set
        return self._resident[1]

    def configure_optimizers(self) -> list[Optimizer]:
        """Return the objective's optimizers; Lightning sees them in this order.

        Raises:
            UserError: the prior has trainable weights, and the objective does not optimise them.
        """
        self._optimizers = self.objective.optimizers(self.codes, self.prior)
        held = {id(p) for optimizer in self._optimizers.values() for p in _parameters(optimizer)}
        if any(id(parameter) not in held for parameter in self.prior.trainable()):
            raise UserError(
                f"{type(self.objective).__name__} does not optimise the trainable weights of "
                f"{type(self.prior).__name__}; choose another objective or a frozen prior"
            )
        return list(self._optimizers.values())

    def _stepping(self, term: Term) -> list[str]:
        # Codes and what decodes them move together; most priors are frozen and have no such optimizer.
        decoders = [DECODER + name.removeprefix(CODES) for name in term.optimizers if name.startswith(CODES)]
        return [*term.optimizers, *(name for name in decoders if name in self._optimizers)]

    def _step(self, name: str, *, count: bool) -> None:
        # Lightning counts every step of its wrapped optimizers; one per training step makes max_steps count those.
        if count:
            wrapped = self.optimizers()
            index = list(self._optimizers).index(name)
            (wrapped[index] if isinstance(wrapped, list) else wrapped).step()
        else:
            self._optimizers[name].step()

    def _step_undone(self) -> None:
        """Take back what counts the last step, beside the buffers."""
        self._number -= 1
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.completed -= 1  # `global_step`

    def _log(self, term: Term) -> Tensor:
        """Log a term with its metrics, and return its value."""
        value = (term.value if term.report is None else term.report).detach()
        self._log_value(term.name, value)
        for name, metric in term.metrics.items():
            self._log_value(name, metric.detach())
        return value

    def _log_value(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        many = self.trainer.world_size > 1
        reduce_fx = "sum" if many else "mean"
        self.log(f"train/{name}", value, prog_bar=prog_bar, sync_dist=many, reduce_fx=reduce_fx)

    # Start of a run

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse settings, say what is missing; return a progress bar of whole runs for the trainer's own."""
        self.check_trainer(self.trainer)  # before any image is decoded
        tell_of_evaluation(self.trainer)
        return own_bar(self.trainer)

    def __repr__(self) -> str:
        """Return one line; `print(nn.Module.__repr__(model))` lists the layers."""
        facts = shown(self)
        return f"Distiller({facts['codes']}, step {facts['step']}; {facts['objective']}, {facts['prior']})"

    _repr_html_ = shown_as_table

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Raise for settings that manual optimisation or the prior cannot honour."""
        check_trainer(trainer, self.prior, self.prior_precision)

    def setup(self, stage: str) -> None:
        """Multiply as the settings say."""
        self._multiplying.enter_context(
            multiplying(self._matmul_precision, self.trainer.strategy.root_device)
        )

    def teardown(self, stage: str) -> None:
        """Multiply as before."""
        self._multiplying.close()

    def on_fit_start(self) -> None:
        """Choose the labeller, and set the codes unless a checkpoint has."""
        self._choose_labels()
        self.initialise()
        if self.trainer.max_steps == 0 and self.prior.num_steps and self.prior.can_sample:
            rank_zero_warn(
                "trainer.max_steps is 0: the set is what the reverse process makes of the initialiser's latents; for "
                "the images of the latents themselves set model.prior.init_args.num_steps to 0"
            )
        if self.trainer.world_size > 1:
            # Made by every rank alike, but not always to the last bit on a GPU; checkpoints hold rank 0's.
            for value in self.codes.state_dict().values():
                torch.distributed.broadcast(value, 0)

    def on_train_start(self) -> None:
        """Keep the prior as it is, whatever mode the trainer set."""
        self.prior.eval()
        self._number = int(self.num_steps_done)

    def on_train_end(self) -> None:
        """Ask whether the last step was good."""
        self.finite.settle()

    def on_validation_start(self) -> None:
        """Choose the labeller, where no fit has."""
        self._choose_labels()

    def _choose_labels(self) -> None:
        if self.labels is not None and self.labeller is None:
            counts = [self.images_per_class] * self.data_spec.num_classes
            with self.ledger.charge(LABEL, self.device):
                self.labeller = self.labels.choose(self._data, counts, self.seed, self.device)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do nothing per batch: `CrossArchitecture` evaluates the set as a whole."""

    def initialise(self) -> None:
        """Let the initialiser set all codes, once in a run.

        Raises:
            UserError: a class of the core-set has fewer images than IPC.
        """
        if self.initialised:
            return
        real = self._data.core_set
        for info in self.data_spec.classes:
            real.require(info.label, self.images_per_class, "images_per_class")
        started = time.perf_counter()
        with seeding.seeded(self.seed, "decoder", device=self.device):
            self.prior.reset_trained()  # the same on every rank
        with torch.inference_mode(False):  # some train networks to choose by, also before a validation
            self.initializer(self.codes, self.prior, real, seeding.generator(self.seed, "initial"))
        self._record.start()
        self.initialised.fill_(True)
        self.seconds += time.perf_counter() - started

    # The set

    def distilled_set(self) -> DistilledSet:
        """Return the codes as they are now with their images, labels and costs (kept until the next step)."""
        self.initialise()
        step = int(self.num_steps_done)
        if self._last_set is None or self._last_set[0] != step:
            self._last_set = step, self._describe(step)
        return self._last_set[1]

    @torch.no_grad()
    def _describe(self, step: int) -> DistilledSet:
        self.finite.check_codes(self._number)
        chunk_size = self.planner.chunk_size
        described = describe(
            self.synthesis,
            self.data_spec,
            self.synthesis.draw(chunk_size=64 if chunk_size == "auto" else chunk_size),
            seen=self._record.seen(step),
            prior=self._record.identity,
            pruning=self._data.pruning_record(),
            data_fingerprints=self._data.fingerprints,
            seed=self.seed,
            step=step,
        )
        if self.rediffusion is not None:
            with self.ledger.charge(REDIFFUSE, self.device, **{DECODES: len(described.images)}):
                prior = self.rediffusion.load_prior(self.prior, self.device)
                described = rediffuse(described, prior, self.rediffusion, self.seed)
        if self.labeller is not None:
            with self.ledger.charge(LABEL, self.device):
                described = self.labeller.label(described)
        needs, seconds = self.needs(steps=step > 0), float(self.seconds)
        return described.charged(self.ledger.so_far(self._data, self.device, needs, seconds, step))

    def needs(self, *, steps: bool = True) -> list[ExpertNeed]:
        """Return the experts that a run reads: for its labels and, if it takes any `steps`, its objective."""
        of_labels = () if self.labels is None else self.labels.experts()
        return [*(self.objective.experts() if steps else ()), *of_labels]

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return one draw of every code, (N, 3, H, W) uint8 on the CPU; the generator's state decides."""
        return self.synthesis.draw(generator=generator)

    # Checkpoints: codes, trained decoder, optimizers, step and memory plans; never the frozen prior.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the prior's frozen weights, add memory plans and all costs; raise for codes that are lost."""
        self.finite.check_codes(self._number)
        checkpoint["ledger"] = self.ledger.kept(self._data)
        self._record.save(checkpoint)
        trained = {f"prior.{name}" for name in self.prior.trained()}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            k: v for k, v in state.items() if k in trained or not k.startswith("prior.")
        }
        self.planner.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError for a checkpoint of another run: of other codes or decoders, or of another prior."""
        self._record.load(checkpoint)
        state = checkpoint["state_dict"]
        needed = {f"codes.{name}": value for name, value in self.codes.state_dict().items()}
        needed |= {f"prior.{name}": value for name, value in self.prior.trained().items()}
        for name, value in needed.items():
            found = state.get(name)
            if found is None or found.shape != value.shape:
                raise UserError(
                    f"ckpt_path: {name} is {'missing' if found is None else list(found.shape)}, this "
                    f"configuration needs {list(value.shape)}; resume with the run's own config.yaml"
                )
        self.ledger.add(checkpoint.get("ledger", NOT_KEPT))
        self.planner.load(checkpoint)

    @property
    def _data(self) -> DistillationData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DistillationData)
        return data


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
