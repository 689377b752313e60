"""One training step, and an epoch that can start and stop at any step."""

from __future__ import annotations

import contextlib
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import Stopped, TrainingError
from claris_kaggle.data.augment import change_stain, to_input
from claris_kaggle.data.batches import Batch, EpochBatches
from claris_kaggle.data.d4 import apply_symmetry
from claris_kaggle.runtime.cudnn_fallback import DEFAULT_MODE, move_network
from claris_kaggle.runtime.distributed import World, first_nonempty_text, max_over_ranks
from claris_kaggle.runtime.loading import load_in_order, prefetch_to_device
from claris_kaggle.runtime.precision import autocast
from claris_kaggle.training.moving_average import _MovingAverage
from claris_kaggle.training.optimizer import _create_optimizer

_WARM_UP = 0.3
_START_FACTOR, _END_FACTOR = 1 / 25, 1e-4
# Reading the loss from a GPU waits for the device, so it is read once in this many steps.
_CHECK_INTERVAL = {"cpu": 1, "cuda": 20}
# Training has diverged after this many consecutive steps without a finite loss.
_MAX_SKIPPED_STEPS = 5
# Training has also diverged after this many consecutive steps without a weight update. Each halves fp16's loss scale.
_MAX_STEPS_WITHOUT_UPDATE = 40
# torch 2.14 renamed this argument.
_NEW_ARGUMENT, _OLD_ARGUMENT = "forward_sync_buffers", "broadcast_buffers"
_SYNC_BUFFERS = (
    _NEW_ARGUMENT if _NEW_ARGUMENT in inspect.signature(DistributedDataParallel).parameters else _OLD_ARGUMENT
)
_CONTINUE, _STOP, _UNHEALTHY = 0, 1, 2


def _learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step.

    `onecycle` warms up over the first 30 % of the steps, then decays along a cosine to almost 0 (Smith and Topin 2018).
    `cosine` decays from the first step (Loshchilov and Hutter 2017). The SWA epochs follow at a constant rate. This is
    a pure function of the step, so the checkpoint needs no scheduler state.

    Args:
        step: 0..steps-1, counted over all epochs.
        steps: number of steps in all epochs.
        config: `lr` is the peak, `schedule` the shape.
    """
    peak = config.lr
    if config.swa_epochs:
        steps = steps // config.epochs * (config.epochs - config.swa_epochs)
        if step >= steps:
            return peak * config.swa_lr
    if config.schedule == "constant":
        return peak
    progress, warm_up = (step + 0.5) / steps, _WARM_UP if config.schedule == "onecycle" else 0.0
    if progress < warm_up:
        low, high, position = _START_FACTOR, 1.0, progress / warm_up
    else:
        low, high, position = 1.0, _END_FACTOR, (progress - warm_up) / (1 - warm_up)
    return peak * (high + (low - high) * (1 + math.cos(math.pi * position)) / 2)


class _Diverged(TrainingError):
    """The loss or its gradients are NaN or infinite. Training rolls back to the last checkpoint once."""


@dataclass
class _Learner:
    """A network in training, with the full state that a checkpoint saves.

    Attributes:
        config: config of the run.
        world: rank, world size and device of this process.
        model: the network on the device, without the DDP wrapper.
        compiled: train through `torch.compile`. `model` and the names of its weights do not change.
        cudnn: one of `config.CUDNN_MODES`. `contiguous` keeps the network contiguous instead of channels-last.
        epoch, step: the next step, both counted from 0; `step` within the epoch.
        global_step: number of steps so far, over all epochs.
        loss_sum: sum of the losses in this epoch so far, this rank's share, float64 on the device.
        skipped_steps, skipped_in_a_row: total and consecutive steps without a finite loss, int64 on the device. Such
            steps change no weight.
        saved_buffers: the running statistics at the last health check, or at the start.
        updates: number of calls of the optimizer's step in this process.
        checked_skipped_steps, checked_updates: `skipped_steps` and the number of weight updates at the last health
            check.
        last_update_step: the value of `global_step` when the number of weight updates last changed.
        seconds: time spent in this epoch so far.
        history: one row for each finished epoch.
    """

    config: TrainConfig
    world: World
    model: nn.Module
    compiled: bool = False
    cudnn: str = DEFAULT_MODE
    epoch: int = 0
    step: int = 0
    global_step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Move the network to the device, and create the optimizer, the gradient scaler and the DDP wrapper."""
        device = self.world.device
        move_network(self.model, device, self.cudnn)
        self.optimizer = _create_optimizer(_parameter_groups(self.model, self.config), self.config, device)
        self.updates = 0
        learner = weakref.proxy(self)  # a cycle of references would keep the GPU memory until the garbage is collected
        self.optimizer.register_step_post_hook(lambda *_: learner.on_optimizer_step())
        self.body_parameters = _body_parameters(self.model) if self.config.freeze_epochs else []
        # Only fp16 needs loss scaling. For fp32 and bf16, a scaler at scale 1 skips steps with non-finite gradients.
        scaling = self.config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if scaling else 1.0, growth_interval=2000 if scaling else 2**31 - 1
        )
        self.wrapped: nn.Module = self.model
        if self.world.world_size > 1:
            ddp_options: dict[str, Any] = {_SYNC_BUFFERS: False}
            # The running statistics of rank 0 are saved. `broadcast_buffers` sends them to all ranks before prediction.
            self.wrapped = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **ddp_options,
            )
        if self.compiled:  # at most two batch sizes occur: one compiled graph each is faster than a dynamic one
            self.wrapped = torch.compile(self.wrapped, dynamic=False)  # type: ignore[assignment]
        self.ema = _MovingAverage(self.model, self.config.ema) if self.config.ema else None
        self.swa = AveragedModel(self.model) if self.config.swa_epochs else None
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped_steps, self.skipped_in_a_row = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(2)
        )
        self.saved_buffers = self.copy_statistics()
        self.checked_skipped_steps, self.checked_updates, self.last_update_step = 0, -1.0, 0
        self.class_weights = torch.tensor([1.0, self.config.class_weight], device=device)

    @property
    def predictor(self) -> nn.Module:
        """The network that predicts: the EMA, or the SWA after the last epoch, if enabled; else the trained network."""
        averaged = self.swa if self.swa_is_complete else self.ema
        predictor: nn.Module = self.model if averaged is None else averaged.module
        return predictor

    @property
    def swa_is_complete(self) -> bool:
        """True if SWA is enabled and the weights of its last epoch are in the average."""
        return self.swa is not None and int(self.swa.n_averaged) == self.config.swa_epochs

    def add_epoch_to_swa(self) -> None:
        """Add the weights to the SWA at the end of an SWA epoch, unless a stop came after they were added."""
        due = self.epoch + 1 - (self.config.epochs - self.config.swa_epochs)
        if self.swa is not None and int(self.swa.n_averaged) < due:
            self.swa.update_parameters(self.model)

    def running_statistics(self) -> list[Tensor]:
        """Return the running statistics of the batch norms: of the network, then of its EMA."""
        networks = [self.model] if self.ema is None else [self.model, self.ema.module]
        return [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]

    def copy_statistics(self) -> list[Tensor]:
        """Return a copy of the running statistics."""
        return [buffer.clone() for buffer in self.running_statistics()]

    def check_health(self) -> bool:
        """Return True if training can continue. Restore the running statistics after steps without a finite loss.

        An infinite value in a forward pass stays in the running statistics of a batch norm, even if the step changes no
        weight. So the statistics of the last health check are restored. Waits for the device.
        """
        skipped = int(self.skipped_steps)
        if skipped > self.checked_skipped_steps:
            for buffer, saved in zip(self.running_statistics(), self.saved_buffers, strict=True):
                buffer.copy_(saved)
        else:
            self.saved_buffers = self.copy_statistics()
        self.checked_skipped_steps = skipped
        updates = self.total_updates()
        if updates != self.checked_updates:  # the scaler skips steps whose gradients are not finite
            self.checked_updates, self.last_update_step = updates, self.global_step
        return (
            int(self.skipped_in_a_row) < _MAX_SKIPPED_STEPS
            and self.global_step - self.last_update_step < _MAX_STEPS_WITHOUT_UPDATE
        )

    def on_optimizer_step(self) -> None:
        """Count a call of the optimizer's step. The scaler omits the call if gradients are not finite."""
        self.updates += 1

    def total_updates(self) -> float:
        """Return the number of weight updates. A fused optimizer is always called, so its own count is used."""
        if self.optimizer.defaults.get("fused"):
            return next((float(state["step"]) for state in self.optimizer.state.values()), 0.0)
        return self.updates

    def state(self) -> dict[str, object]:
        """Return everything that `restore` needs, as tensors and plain values."""
        self.check_health()
        return {
            "model": self.model.state_dict(),
            "average": None if self.ema is None else self.ema.module.state_dict(),
            "swa": None if self.swa is None else self.swa.state_dict(),
            "taken": self.global_step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum * self.world.world_size,  # approximates the sum over all ranks
            "skipped": self.skipped_steps,
            "history": self.history,
            "config": self.config.to_json(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the output of `state`, so that training resumes at the same step."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["average"])
        if self.swa is not None:
            self.swa.load_state_dict(state["swa"])
        for group in state["optimizer"]["param_groups"]:
            if "fused" in group:
                group["fused"] = self.optimizer.defaults["fused"]  # the checkpoint may be from another device
        self.optimizer.load_state_dict(state["optimizer"])
        _match_memory_formats(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.global_step = state["epoch"], state["step"], state["taken"]
        self.seconds = state["seconds"]
        self.loss_sum.copy_(state["loss_sum"] / self.world.world_size)
        self.skipped_steps.copy_(state["skipped"])
        self.skipped_in_a_row.zero_()
        self.saved_buffers = self.copy_statistics()
        self.checked_skipped_steps, self.checked_updates = int(self.skipped_steps), -1.0
        self.history = list(state["history"])


def _is_compiler_error(error: RuntimeError) -> bool:
    """Return True if torch could not compile the network."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _match_memory_formats(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the memory format of its parameters, as the fused optimizer of a GPU requires.

    The checkpoint may be from another cuDNN mode, with the network in another memory format.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer, each with `weight_decay` and `lr_scale`.

    `lr_scale` is a factor of the learning rate. Weight decay applies to weights only, not to biases and batch norms.
    """
    if config.layer_decay < 1:
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(model, config.weight_decay, layer_decay=config.layer_decay)
    else:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {
                "params": [parameter for parameter in parameters if parameter.ndim > 1],
                "weight_decay": config.weight_decay,
            },
            {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    head = _head_parameters(model) if config.lr_head != 1 else set()
    return [part for group in groups for part in _split_off_head(group, head, config.lr_head)]


def _split_off_head(group: dict[str, Any], head: set[Tensor], factor: float) -> list[dict[str, Any]]:
    """Split a group into body and head. The learning rate of the head is `factor` times as high. Omit empty groups."""
    scale = group.get("lr_scale", 1.0)
    common = {"weight_decay": group["weight_decay"]}
    body_group = {
        **common,
        "lr_scale": scale,
        "params": [parameter for parameter in group["params"] if parameter not in head],
    }
    head_group = {
        **common,
        "lr_scale": scale * factor,
        "params": [parameter for parameter in group["params"] if parameter in head],
    }
    return [part for part in (body_group, head_group) if part["params"]]


def _head_parameters(model: nn.Module) -> set[Tensor]:
    """Return the parameters of the classifier. Networks that were distilled have a tuple of classifiers."""
    classifier = model.get_classifier()  # type: ignore[operator]
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    return {parameter for layer in layers for parameter in layer.parameters()}


def _body_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all parameters except those of the classifier."""
    head = _head_parameters(model)
    return [parameter for parameter in model.parameters() if parameter not in head]


def _train_step(learner: _Learner, batch: Batch, lr: float) -> None:
    """Run one training step: forward, backward, update. Change no weight if the loss or a gradient is not finite.

    The loss is exactly the weighted mean over the patches of all ranks. DDP averages the gradients of the ranks, so
    each rank multiplies its sum by the world size and divides it by the total weight of the step.

    Args:
        learner: the learner to update.
        batch: this rank's part of the step.
        lr: learning rate, before the factors of the parameter groups.
    """
    device, config = learner.world.device, learner.config
    batch = batch.to(device)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # checkpoints of earlier versions have no factor
    frozen = learner.epoch < config.freeze_epochs
    learner.wrapped.train(not frozen)  # frozen layers also keep their running statistics
    inputs, mix_weight = _augment_batch(learner, batch), 1.0
    if config.mixup:
        mix_weight = _mixup_weight(config.seed, learner.global_step, config.mixup)
        inputs = torch.lerp(inputs.flip(0), inputs, mix_weight)
    with _step_generator(learner), autocast(device, config.precision):
        logits = learner.wrapped(inputs).float()
    weighted_sum = mix_weight * _sum_loss(learner, logits, batch.labels, batch.weights)
    if mix_weight < 1:
        weights = None if batch.weights is None else batch.weights.flip(0)
        weighted_sum = weighted_sum + (1 - mix_weight) * _sum_loss(learner, logits, batch.labels.flip(0), weights)
    loss = weighted_sum * (learner.world.world_size / batch.total_weight)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()
    if frozen:
        for parameter in learner.body_parameters:
            parameter.grad = None  # the optimizer then skips it and its moments
    if config.clip_grad:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), config.clip_grad)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.global_step += 1
    if learner.ema is not None:
        learner.ema.update(learner.model, step=learner.global_step)
    _count_loss(learner, loss.detach())


@contextlib.contextmanager
def _step_generator(learner: _Learner) -> Iterator[None]:
    """Seed torch's generators for dropout by seed, step and rank, so that a resumed run draws the same masks."""
    device = learner.world.device
    seed = np.random.SeedSequence((learner.config.seed, learner.global_step, 1, learner.world.rank)).generate_state(1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed[0]))
        yield


def _mixup_weight(seed: int, step: int, strength: float) -> float:
    """Return the mixup weight of a step's own patches, in 0..1: Beta(strength, strength) (Zhang et al. 2018).

    It depends only on the seed and the step, counted over all epochs, so a resumed run draws the same weights.
    """
    return float(np.random.default_rng((seed, step, 0)).beta(strength, strength))


def _augment_batch(learner: _Learner, batch: Batch) -> Tensor:
    """Return the input of the network after augmentation with the batch's random draws: float32 [B, 3, S, S]."""
    config = learner.config
    images = apply_symmetry(batch.images, batch.symmetries) if len(batch.symmetries) else batch.images
    augmented = config.augment != "none"
    images = change_stain(images, batch.stains) if config.stain and augmented else images
    draws = batch.colors if config.color and augmented else None
    return to_input(images, config.normalise, draws, config.resolution)


def _sum_loss(learner: _Learner, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the class-weighted cross-entropy, times the weight of each patch if given, summed over the patches."""
    losses = functional.cross_entropy(
        logits, labels, weight=learner.class_weights, reduction="sum" if weights is None else "none",
        label_smoothing=learner.config.label_smoothing,
    )  # fmt: skip
    return losses if weights is None else (losses * weights).sum()


def _count_loss(learner: _Learner, loss: Tensor) -> None:
    """Add the loss of a step to the sum of the epoch, or count it if it is not finite. Does not wait for the device."""
    finite = torch.isfinite(loss)
    learner.loss_sum += torch.where(finite, loss, torch.zeros_like(loss)) / learner.world.world_size
    learner.skipped_steps += ~finite
    learner.skipped_in_a_row = torch.where(
        finite, torch.zeros_like(learner.skipped_in_a_row), learner.skipped_in_a_row + 1
    )


def _train_epoch(learner: _Learner, batches: EpochBatches, workers: int, after_step: Callable[[int], str]) -> float:
    """Train the rest of the current epoch. Return this rank's share of the mean loss.

    Args:
        learner: starts at its `step`; is at the end of the epoch afterwards.
        batches: all steps of the epoch, for this rank.
        workers: worker processes for data loading; 0 loads in this process.
        after_step: called after each step with the number of rows of that step over all ranks. Returns the reason to
            stop, or an empty text to continue.
    Raises:
        _Diverged: the loss or its gradients are NaN or infinite in several consecutive steps.
        Stopped: a rank has a reason to stop. All ranks stop after the same step.
    """
    steps = len(batches)
    device = learner.world.device
    check_interval = _CHECK_INTERVAL.get(device.type, 1)
    loader = load_in_order(batches, range(learner.step, steps), workers, pin=device.type == "cuda")
    for batch in prefetch_to_device(loader, device):
        global_step = learner.epoch * steps + learner.step
        _train_step(learner, batch, _learning_rate(global_step, steps * learner.config.epochs, learner.config))
        learner.step += 1
        reason = after_step(len(batch.labels) * learner.world.world_size)
        if learner.step % check_interval and learner.step < steps:
            continue
        code = max_over_ranks(
            learner.world, _UNHEALTHY if not learner.check_health() else _STOP if reason else _CONTINUE
        )
        if code == _UNHEALTHY:
            raise _Diverged(
                f"epoch {learner.epoch + 1}, step {learner.step}: the loss or its gradients are NaN or infinite",
                "",
                f"Start a new run with a lower --lr than {learner.config.lr:g}, or with --precision fp32",
            )
        if code == _STOP:
            reason = first_nonempty_text(learner.world, reason)
            found = f"stopped by {reason} in epoch {learner.epoch + 1} after step {learner.step}"
            raise Stopped(found, "", "Run the same command to resume")
    return learner.loss_sum.item() / steps


def _recompute_statistics(learner: _Learner, network: nn.Module, batches: EpochBatches, workers: int) -> None:
    """Recompute the running statistics of the batch norms in one pass over the training patches (Izmailov et al. 2018).

    The statistics are means over the batches. Dropout is active, as in training, with the seed of the config.

    Args:
        learner: sets device, precision and augmentation.
        network: gets the new statistics; its weights do not change.
        batches: all steps of an epoch, for a single process.
        workers: worker processes for data loading; 0 loads in this process.
    """
    device, config = learner.world.device, learner.config

    def inputs() -> Iterator[Tensor]:
        loader = load_in_order(batches, range(len(batches)), workers, pin=device.type == "cuda")
        for batch in prefetch_to_device(loader, device):
            with torch.autocast(device.type, enabled=False):  # float32, as in a training step
                augmented = _augment_batch(learner, batch)
            yield augmented

    with torch.random.fork_rng([device] if device.type == "cuda" else []), autocast(device, config.precision):
        torch.manual_seed(config.seed)
        update_bn(inputs(), network)


def _sum_over_ranks(world: World, value: float) -> float:
    """Return the sum of the values of all ranks. Each value is that rank's share of a mean."""
    if world.world_size == 1:
        return value
    tensor: Tensor = torch.tensor([value], dtype=torch.float64)
    torch.distributed.all_reduce(tensor)
    return float(tensor.item())
