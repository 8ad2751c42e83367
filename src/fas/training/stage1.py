"""Stage 1: fine-tuning of the QCFS model, and of the ANN as its control, on the Hugging Face Trainer.

All parameters are trained, or adapters (`fas.training.lora`). Under torchrun each process takes its share of every batch (DDP,
or FSDP2: `fas.training.sharded`), so that a step is that of one process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from fas import world
from fas.errors import ConfigError, FasError
from fas.losses import logits_loss, logits_of
from fas.neurons import NeuronParameters, Site
from fas.progress import Progress, Silent
from fas.runtime.finite import is_finite
from fas.training.budget import SpikeBudget
from fas.training.lora import Lora, adapted
from fas.training.optimizer import adamw
from fas.training.sharded import fsdp_arguments, shard_on_cpus, sharded_copy
from fas.training.states import block_outputs, states_loss


@dataclass(frozen=True)
class Stage1Options:
    """How Stage 1 trains; the control takes the same, with the task loss only."""

    steps: int = 400
    batch_size: int = 16
    """Examples a step, of all processes together."""
    lr: float = 3e-4
    scale_lr: float = 3e-3
    """Learning rate of log λ: Adam moves a scale by about this share of itself per step. Of an SNN: of log θ and v₀."""
    weight_decay: float = 0.0
    warmup: float = 0.05
    """Share of the steps in which the learning rates rise; then they fall as a cosine to 0."""
    distill: float = 0.5
    """Weight of KL(ANN ‖ student) on the logits, in nats per token; 1 − distill is the weight of the task loss."""
    temperature: float = 1.0
    distill_states: float = 0.0
    """Weight of the relative squared error of the blocks' hidden states against the teacher's (beyond the paper)."""
    spikes_per_neuron: float | None = None
    """Budget of expected spikes, all sites pooled; None: none. The control has no spikes and ignores it."""
    lora: Lora | None = None
    """Train adapters instead of the weights."""
    fsdp: bool = False
    """Of several processes each holds a part of the parameters, gradients and optimizer states, not all of them."""
    seed: int = 0


class TrainingSet(Protocol):
    """Examples by number, keyword arguments of the model each, and how they become a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch, padded where they differ in length."""
        ...

    def lengths(self) -> list[int] | None:
        """Tokens of each, so that those of a batch can be alike; None: all are."""
        ...


class Stage1Trainer(Trainer):
    """A Trainer with its own learning rate for scales and, with a teacher, distillation beside the task loss."""

    def __init__(
        self, *args: Any, options: Stage1Options, teacher: PreTrainedModel | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.options, self.teacher = options, teacher
        self.budget: SpikeBudget | None = None
        student: Any = self.model
        if options.spikes_per_neuron is not None and any(isinstance(part, Site) for part in student.modules()):
            self.budget = SpikeBudget(student, options.spikes_per_neuron, options.steps)
        if teacher is not None:
            teacher.eval().requires_grad_(False).to(self.args.device)  # type: ignore[arg-type]

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate leaves FSDP out on CPUs without a word, although its FSDP2 works there."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """AdamW with the scales in a group of their own, without weight decay."""
        if self.optimizer is None:
            assert self.model is not None
            self.optimizer = adamw(self.model, self.options)
        return self.optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """A grouping by lengths draws from a generator of its own: all processes must draw the same."""
        sampler: Any = super()._get_train_sampler(*args, **kwargs)
        if getattr(sampler, "generator", self) is None:
            sampler.generator = torch.Generator().manual_seed(self.options.seed)
        return sampler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """(1 − w)·task + w·KL(teacher ‖ student)·temperature², averaged over predicted tokens; the hidden states' distance to
        the teacher's; and what exceeds the budget."""
        weight = self.options.distill if self.teacher is not None else 0.0
        states = self.options.distill_states if self.teacher is not None and model.training else 0.0
        budget = self.budget if model.training else None
        metering = budget.metering(inputs.get("attention_mask")) if budget is not None else nullcontext()
        with metering, block_outputs(model) if states else nullcontext([]) as mine:
            outputs = model(**_known(inputs))
        logits = logits_of(outputs)
        task_loss = outputs.loss if "classes" not in inputs else F.cross_entropy(logits, inputs["classes"])
        loss = (1 - weight) * task_loss
        if budget is not None:
            loss = loss + budget.penalty()
        if self.teacher is not None and (weight > 0 or states):
            with torch.no_grad(), block_outputs(self.teacher) if states else nullcontext([]) as wanted:
                target = logits_of(self.teacher(**{k: v for k, v in _known(inputs).items() if k != "labels"}))
            loss = loss + weight * logits_loss(logits, target, self.options.temperature)
            if states:
                loss = loss + states * states_loss(mine, wanted, inputs.get("attention_mask"))
        if model.training and not is_finite(loss):
            raise FasError(
                f"training diverged: the loss of step {self.state.global_step + 1} is {float(loss.detach())}; choose a smaller "
                "learning rate (--lr, --scale-lr)"
            )
        return (loss, outputs) if return_outputs else loss


def _known(inputs: dict[str, Any]) -> dict[str, Any]:
    """Without the classes of images, for a model that compares them with texts and knows no labels."""
    return {name: value for name, value in inputs.items() if name != "classes"}


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seen = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        note = f"loss {logs['loss']:.4f}" if logs and "loss" in logs else ""
        self.progress.advance(state.global_step - self.seen, note)
        self.seen = state.global_step


class _InBounds(TrainerCallback):
    """Holds v₀ in [0, 1], as Stage 2 does: beyond it a neuron would fire at rest."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        assert model is not None
        for part in model.modules():
            if isinstance(part, NeuronParameters):
                part.v_init.data.clamp_(0.0, 1.0)


def fine_tune(
    model: PreTrainedModel,
    examples: TrainingSet,
    options: Stage1Options,
    teacher: PreTrainedModel | None = None,
    progress: Progress | None = None,
    title: str = "fine-tuning",
) -> PreTrainedModel:
    """Train ``model`` in place on ``examples`` for ``options.steps`` steps and return it in eval mode.

    The same function trains the QCFS model (with a ``teacher`` to distil from) and its control (without one): same data
    in the same order, steps, schedule and seed.
    """
    batch = batch_for(options.batch_size, len(examples))
    progress = progress or Silent()
    progress.start(title, options.steps)
    set_seed(options.seed)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        arguments = _arguments(folder, model, examples, options, batch)
        student = model
        if options.lora is not None:
            stack.enter_context(adapted(model, options.lora))
        if arguments.fsdp:
            student = stack.enter_context(sharded_copy(model))
        loss = _train(student, arguments, examples, options, teacher, progress)
    progress.done(f"mean training loss {loss:.4f}")
    return model.eval()


def _train(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    examples: TrainingSet,
    options: Stage1Options,
    teacher: PreTrainedModel | None,
    progress: Progress,
) -> float:
    """Train and return the mean loss; optimizer states are gone afterwards."""
    trainer = Stage1Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=examples.collate,
        callbacks=[_Report(progress), _InBounds()],
        options=options,
        teacher=teacher,
    )
    trainer.remove_callback(_printer())
    return trainer.train().training_loss


def batch_for(asked: int, examples: int) -> int:
    """Examples a step of all processes together: ``asked``, or as many as there are. Raises `ConfigError` if the processes
    cannot share them equally."""
    batch, processes = min(asked, examples), world.size()
    if batch % processes:
        raise ConfigError(
            f"a batch of {batch} cannot be divided equally among {processes} processes; choose --batch-size "
            f"{-(-batch // processes) * processes}, or another --nproc-per-node"
        )
    return batch


def _arguments(
    folder: str, model: PreTrainedModel, examples: TrainingSet, options: Stage1Options, batch: int
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=batch,
        accelerator_config={"split_batches": True},
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(options.warmup * options.steps),
        max_grad_norm=1.0,
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=max(1, options.steps // 20),
        save_strategy="no",
        report_to=[],
        log_level_replica="passive",  # else it unsilences transformers there
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_drop_last=True,
        remove_unused_columns=False,  # classes of images are no argument of CLIP's
        train_sampling_strategy="random" if examples.lengths() is None else "group_by_length",
        **(fsdp_arguments(model) if options.fsdp and world.size() > 1 else {}),
    )
    # several GPUs in one process would mean DataParallel, whose replicas share one site: use one
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
