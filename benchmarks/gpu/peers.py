"""Loops of other libraries over the same network and device: the reference, timm and Lightning."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.gpu.card import CUDA, DEVICE, LR, MODEL, Work, channels_last_network
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.throughput import _synchronize

Batches = Iterable[tuple[Tensor, Tensor]]


def has_lightning() -> bool:
    """Return True if Lightning can be imported."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch  # noqa: F401

        return True
    return False


def their_network() -> nn.Module:
    """Return torchvision's DenseNet-121; the tiny network with `--quick`."""
    return create_model(MODEL) if MODEL == "tiny" else reference.create()


def float_batch(size: int) -> tuple[Tensor, Tensor]:
    """Return a batch of normalised noise and labels on the device."""
    return torch.randn(size, 3, 96, 96, device=DEVICE), torch.randint(0, 2, (size,), device=DEVICE)


def amp() -> Any:
    """Return autocast to fp16 on a GPU, and a context that does nothing on a CPU."""
    return torch.autocast("cuda", torch.float16) if CUDA else contextlib.nullcontext()


def reference_loop(batches: Callable[[], Batches]) -> Callable[[], Iterator[int]]:
    """Return the reference's training loop in float32, contiguous. It reads the loss of each step."""
    model = their_network().to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def loop() -> Iterator[int]:
        for images, labels in batches():
            images, labels = images.to(DEVICE), labels.to(DEVICE)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(labels)

    return loop


def timm_loop(batches: Callable[[], Batches], *, compiled: bool = False) -> Callable[[], Iterator[int]]:
    """Return a training loop like timm's script with --amp --channels-last: its network, scaler and optimizer.

    It reads the loss of each step, as the script does in one process.
    """
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, NativeScaler

    model = channels_last_network().train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=0.0)
    scaler, losses = NativeScaler(DEVICE.type), AverageMeter()
    forward = torch.compile(model) if compiled else model

    def loop() -> Iterator[int]:
        for images, labels in batches():
            images = images.to(DEVICE, non_blocking=True).contiguous(memory_format=torch.channels_last)
            labels = labels.to(DEVICE, non_blocking=True)
            with amp():
                loss = nn.functional.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            scaler(loss, optimizer, parameters=model.parameters())
            losses.update(loss.item(), len(labels))
            yield len(labels)

    return loop


def lightning_trainer(**options: Any) -> Any:
    """Return a Trainer without output on this device, in mixed precision."""
    import lightning.pytorch as pl

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return pl.Trainer(
        accelerator="gpu" if CUDA else "cpu", devices=1, precision="16-mixed" if CUDA else "32-true",
        benchmark=True, **quiet, **options,
    )  # fmt: skip


def lightning_module(clock: StepClock) -> Any:
    """Return a minimal LightningModule that trains the network and reports each step to the clock."""
    import lightning.pytorch as pl

    class Classifier(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = their_network()

        def training_step(self, batch: Any, number: int) -> Tensor:
            images, labels = batch
            clock.step(len(labels))
            return nn.functional.cross_entropy(self.model(images), labels)

        def predict_step(self, batch: Any, number: int) -> Tensor:
            clock.step(len(batch[0]))
            return self.model(batch[0]).softmax(1)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=LR)

    return Classifier()


class StepClock:
    """A counter of images in all steps after the first `skipped`."""

    def __init__(self, skipped: int) -> None:
        self.skipped, self.steps, self.images, self.began = skipped, 0, 0, 0.0

    def step(self, rows: int) -> None:
        """Count the start of a step."""
        if self.steps == self.skipped:
            _synchronize(DEVICE)
            self.began, self.images = time.perf_counter(), 0
        self.steps += 1
        self.images += rows

    def rate(self) -> float:
        """Return images per second so far."""
        _synchronize(DEVICE)
        return self.images / (time.perf_counter() - self.began)


def lightning_rate(batches: Callable[[], Batches], skipped: int, *, predict: bool = False) -> Callable[[], float]:
    """Return a function that measures images per second of Trainer.fit or predict, without set-up and first steps."""

    def measured() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clock = StepClock(skipped)
            module = lightning_module(clock)
            if predict:
                lightning_trainer().predict(module, Repeated(batches), return_predictions=False)
            else:
                lightning_trainer(max_epochs=1).fit(module, Repeated(batches))
            return clock.rate()

    return measured


class Repeated:
    """Batches as Lightning needs them: an iterable that can be iterated several times."""

    def __init__(self, batches: Callable[[], Batches]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return a new iterator."""
        return iter(self.batches())


def all_of(loop: Callable[[], Iterator[int]]) -> Work:
    """Return a function that runs the whole loop."""
    return lambda: sum(loop())


def reference_views(images: Tensor, views: int) -> Work:
    """Return that number of eager forward passes in float32, contiguous."""
    model = their_network().to(DEVICE).eval()

    def work() -> None:
        with torch.no_grad():
            for _ in range(views):
                model(images).softmax(1)

    return work


def timm_views(images: Tensor, views: int) -> Work:
    """Return that number of forward passes, like timm's inference script with --amp --channels-last."""
    model = channels_last_network().eval()

    def work() -> None:
        with torch.inference_mode():
            for _ in range(views):
                with amp():
                    output = model(images.contiguous(memory_format=torch.channels_last))
                output.float().softmax(1).cpu()

    return work
