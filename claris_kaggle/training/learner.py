"""Training: what a step does, and one epoch of steps that can begin anywhere and stop anywhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import Stopped, TrainingError
from claris_kaggle.data.augment import change_stain, to_input
from claris_kaggle.data.batches import Batch, EpochBatches
from claris_kaggle.data.d4 import turn_on_device
from claris_kaggle.runtime.cudnn_fallback import DEFAULT_MODE, move_network
from claris_kaggle.runtime.distributed import World, any_rank, first_text
from claris_kaggle.runtime.loading import load_in_order, send_ahead
from claris_kaggle.runtime.precision import DTYPES
from claris_kaggle.training.mixing import _has_surroundings_mixed, _mix_surroundings, _mixup_share, _seed_layers

_WARM_UP = 0.3
_FIRST_LR, _LAST_LR = 1 / 25, 1e-4
# On a GPU looking at the loss waits for the device: do it once in this many steps.
_CHECK_EVERY = {"cpu": 1, "cuda": 20}
# So many steps in a row without a finite loss are no accident any more.
_MOST_SKIPPED = 5
# Nor are so many without a change of a weight: fp16's scale has been halved as often by then.
_MOST_UNMOVED = 40
# torch 2.14 has another name for it.
_NEWER, _OLDER = "forward_sync_buffers", "broadcast_buffers"
_SYNC_BUFFERS = _NEWER if _NEWER in inspect.signature(DistributedDataParallel).parameters else _OLDER
_CONTINUE, _STOP, _BROKEN = 0, 1, 2


def _learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0) of `steps` in the whole training.

    `onecycle` warms up over the first 30 % and falls by a cosine to nothing (Smith and Topin
    2018); `cosine` falls from the first step on (Loshchilov and Hutter 2017). A pure function of
    the step needs no scheduler state in the checkpoint.
    """
    peak = config.lr
    if config.schedule == "constant":
        return peak
    place, warm_up = (step + 0.5) / steps, _WARM_UP if config.schedule == "onecycle" else 0.0
    if place < warm_up:
        low, high, share = _FIRST_LR, 1.0, place / warm_up
    else:
        low, high, share = 1.0, _LAST_LR, (place - warm_up) / (1 - warm_up)
    return peak * (high + (low - high) * (1 + math.cos(math.pi * share)) / 2)


class _Diverged(TrainingError):
    """The loss is no number any more; a return to the last checkpoint may help once."""


@dataclass
class _Learner:
    """A network in training with all that a checkpoint must hold.

    Attributes:
        model: the bare network, on the device.
        compiled: train through `torch.compile`; `model` and its names stay as they are.
        cudnn: one of `config.CUDNN_MODES`; `contiguous` keeps the network contiguous instead of channels-last.
        epoch, step: the next step to take, counted from 0 within the epoch.
        taken: steps taken so far, over all epochs.
        loss_sum: the steps' losses of the epoch so far, this rank's share, float64 on the device.
        skipped, streak: steps without a finite loss in all and in a row, int64 on the device; they change nothing.
        kept_buffers: the running statistics at the last look.
        looked_at, moved, moved_at: `skipped` and the optimizer's count of steps at the last look, and `taken` when
            that count last changed.
        seconds: time spent in the epoch so far.
        history: one row for each finished epoch.
    """

    config: TrainConfig
    world: World
    model: nn.Module
    compiled: bool = False
    cudnn: str = DEFAULT_MODE
    epoch: int = 0
    step: int = 0
    taken: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Move the network to the device and make optimizer, scaler and the DDP wrapper."""
        device = self.world.device
        move_network(self.model, device, self.cudnn)
        fused = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, self.config), lr=0.0, fused=fused)
        self.body = _body_parameters(self.model) if self.config.freeze_epochs else []
        # Only fp16 needs a scale; for the others the scaler, at a scale of 1, skips what is not finite.
        scaling = self.config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if scaling else 1.0, growth_interval=2000 if scaling else 2**31 - 1
        )
        self.wrapped: nn.Module = self.model
        if self.world.world_size > 1:
            unsynced: dict[str, Any] = {_SYNC_BUFFERS: False}
            # Rank 0's running statistics are those that are saved; `share_buffers` gives them to all to predict with.
            self.wrapped = DistributedDataParallel(
                self.model,
                device_ids=[device] if fused else None,
                gradient_as_bucket_view=True,
                **unsynced,
            )
        if self.compiled:  # steps have two sizes at most: a program for each is faster than one for any size
            self.wrapped = torch.compile(self.wrapped, dynamic=False)  # type: ignore[assignment]
        self.average: Any = None
        if self.config.ema:
            from timm.utils import ModelEmaV3

            self.average = ModelEmaV3(self.model, decay=self.config.ema, use_warmup=True)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped, self.streak = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self.kept_buffers: list[Tensor] = []
        self.looked_at, self.moved, self.moved_at = 0, -1.0, 0
        self.class_weights = torch.tensor([1.0, self.config.class_weight], device=device)

    @property
    def predictor(self) -> nn.Module:
        """The network that predicts: the moving average where there is one."""
        predictor: nn.Module = self.model if self.average is None else self.average.module
        return predictor

    def check_health(self) -> bool:
        """Whether training can go on, and running statistics without what steps of no finite loss left in them.

        One infinity in a forward pass would stay in a batch norm for good, whatever becomes of the step: then those
        of the last look are put back. Waits for the device.
        """
        skipped, networks = int(self.skipped), [self.model] if self.average is None else [self.model, self.average]
        buffers = [one for network in networks for one in network.buffers() if one.is_floating_point()]
        if skipped > self.looked_at and self.kept_buffers:
            for buffer, kept in zip(buffers, self.kept_buffers, strict=True):
                buffer.copy_(kept)
        else:
            self.kept_buffers = [one.clone() for one in buffers]
        self.looked_at = skipped
        moved = next((float(one["step"]) for one in self.optimizer.state.values()), 0.0)
        if moved != self.moved:  # the scaler leaves out steps whose gradients are not finite
            self.moved, self.moved_at = moved, self.taken
        return int(self.streak) < _MOST_SKIPPED and self.taken - self.moved_at < _MOST_UNMOVED

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as tensors and plain values."""
        self.check_health()
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "taken": self.taken,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum * self.world.world_size,  # the others' shares are about as large
            "skipped": self.skipped,
            "history": self.history,
            "config": self.config.to_json(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where `state` was taken."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for group in state["optimizer"]["param_groups"]:
            group["fused"] = self.optimizer.defaults["fused"]  # it may have been another device's
            group.setdefault("lr_scale", 1.0)  # checkpoints of earlier versions have one learning rate for all layers
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.taken = state["epoch"], state["step"], state["taken"]
        self.seconds = state["seconds"]
        self.loss_sum.copy_(state["loss_sum"] / self.world.world_size)
        self.skipped.copy_(state["skipped"])
        self.streak.zero_()
        self.kept_buffers, self.looked_at, self.moved = [], int(self.skipped), -1.0
        self.history = list(state["history"])


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups, each with its `weight_decay` and `lr_scale`, a factor for the learning rate.

    Decay is for weights alone, not for biases and batch norms, whose scale the next layer takes out again.
    """
    if config.layer_decay < 1:
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(model, config.weight_decay, layer_decay=config.layer_decay)
    else:
        parameters = [one for one in model.parameters() if one.requires_grad]
        groups = [
            {"params": [one for one in parameters if one.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
        ]
    head = _head_parameters(model) if config.lr_head != 1 else set()
    return [part for group in groups for part in _split_off_head(group, head, config.lr_head)]


def _split_off_head(group: dict[str, Any], head: set[Tensor], factor: float) -> list[dict[str, Any]]:
    """Return the group, or two where it holds parameters of the head, whose learning rate is `factor` times as high."""
    scale = group.get("lr_scale", 1.0)
    common = {"weight_decay": group["weight_decay"]}
    body = {**common, "lr_scale": scale, "params": [one for one in group["params"] if one not in head]}
    last = {**common, "lr_scale": scale * factor, "params": [one for one in group["params"] if one in head]}
    return [part for part in (body, last) if part["params"]]


def _head_parameters(model: nn.Module) -> set[Tensor]:
    """Return the parameters of the classifier."""
    return set(model.get_classifier().parameters())  # type: ignore[operator]


def _body_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all parameters but the classifier's."""
    head = _head_parameters(model)
    return [one for one in model.parameters() if one not in head]


def _train_step(learner: _Learner, batch: Batch, lr: float) -> None:
    """One step: forward, backward, update. A loss or gradient that is not finite changes no weight.

    The loss is the mean over the patches of all ranks, exactly: DDP averages the ranks' gradients,
    so each rank's sum is divided by its share of the step.
    """
    device, config = learner.world.device, learner.config
    batch = batch.to(device)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    frozen = learner.epoch < config.freeze_epochs
    learner.wrapped.train(not frozen)  # fixed layers keep their running statistics too
    if config.drop_path:
        _seed_layers(config.seed, learner.taken, learner.world.rank)
    inputs, kept = _augment_batch(learner, batch), 1.0
    if config.mixup:
        kept = _mixup_share(config.seed, learner.taken, config.mixup)
        inputs = torch.lerp(inputs.flip(0), inputs, kept)
    with torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32"):
        logits = learner.wrapped(inputs).float()
    total = kept * _sum_loss(learner, logits, batch.labels)
    if kept < 1:
        total = total + (1 - kept) * _sum_loss(learner, logits, batch.labels.flip(0))
    loss = total * (learner.world.world_size / batch.total_weight)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()
    if frozen:
        for parameter in learner.body:
            parameter.grad = None  # the optimizer passes over it, its moments included
    if config.clip_grad:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), config.clip_grad)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.taken += 1
    if learner.average is not None:
        learner.average.update(learner.model, step=learner.taken)
    _count_loss(learner, loss.detach())


def _augment_batch(learner: _Learner, batch: Batch) -> Tensor:
    """What the network takes of the batch, every change that was drawn for its patches made: float32 [B, 3, S, S]."""
    config = learner.config
    images = turn_on_device(batch.images, batch.turns) if len(batch.turns) else batch.images
    if config.cutmix and _has_surroundings_mixed(config.seed, learner.taken, config.cutmix):
        images = _mix_surroundings(images)
    images = change_stain(images, batch.stains) if config.stain else images
    draws = batch.colors if config.color else None
    return to_input(images, config.normalise, draws, config.resolution_in(learner.epoch))


def _sum_loss(learner: _Learner, logits: Tensor, labels: Tensor) -> Tensor:
    """Weighted cross-entropy of the patches, summed."""
    return functional.cross_entropy(
        logits, labels, weight=learner.class_weights, reduction="sum", label_smoothing=learner.config.label_smoothing
    )


def _count_loss(learner: _Learner, loss: Tensor) -> None:
    """Add the step's loss to the epoch's; one that is not finite is counted instead. Waits for no device."""
    finite = torch.isfinite(loss)
    learner.loss_sum += torch.where(finite, loss, torch.zeros_like(loss)) / learner.world.world_size
    learner.skipped += ~finite
    learner.streak = torch.where(finite, torch.zeros_like(learner.streak), learner.streak + 1)


def _train_epoch(learner: _Learner, batches: EpochBatches, workers: int, between: Callable[[int], str]) -> float:
    """The rest of the current epoch; returns this rank's part of the mean loss.

    Args:
        learner: its `step` says where to begin; it stands at the epoch's end afterwards.
        batches: this rank's steps of the whole epoch.
        workers: loader processes; 0 loads in this one.
        between: called after each step with the rows it took over all ranks; a text says why to stop.
    Raises:
        Diverged: the loss is no number, several steps in a row.
        Stopped: a rank had a reason to stop; all ranks stop after the same step.
    """
    steps = len(batches)
    device = learner.world.device
    every = _CHECK_EVERY.get(device.type, 1)
    loader = load_in_order(batches, range(learner.step, steps), workers, pin=device.type == "cuda")
    for batch in send_ahead(loader, device):
        done = learner.epoch * steps + learner.step
        _train_step(learner, batch, _learning_rate(done, steps * learner.config.epochs, learner.config))
        learner.step += 1
        reason = between(len(batch.labels) * learner.world.world_size)
        if learner.step % every and learner.step < steps:
            continue
        code = any_rank(learner.world, _BROKEN if not learner.check_health() else _STOP if reason else _CONTINUE)
        if code == _BROKEN:
            raise _Diverged(
                f"epoch {learner.epoch + 1}, step {learner.step}: the loss or its gradients are no numbers",
                "",
                f"Begin a new run with a lower --lr than {learner.config.lr:g}, or with --precision fp32",
            )
        if code == _STOP:
            reason = first_text(learner.world, reason)
            found = f"stopped by {reason} in epoch {learner.epoch + 1} after step {learner.step}"
            raise Stopped(found, "", "The same command goes on from there")
    return learner.loss_sum.item() / steps


def _average_over_ranks(world: World, value: float) -> float:
    """The sum of the ranks' parts: each already holds its share of the mean."""
    if world.world_size == 1:
        return value
    tensor: Tensor = torch.tensor([value], dtype=torch.float64)
    torch.distributed.all_reduce(tensor)
    return float(tensor.item())
