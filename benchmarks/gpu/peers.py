"""Training and prediction loops of the reference, timm and Lightning for the same network and device."""

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
from benchmarks.gpu.device import CUDA, DEVICE, LR, MODEL, Function, create_network
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


def create_reference_network() -> nn.Module:
    """Return torchvision's DenseNet-121, or the tiny network with `--quick`."""
    return create_model(MODEL) if MODEL == "tiny" else reference.create_network()


def create_float_batch(size: int) -> tuple[Tensor, Tensor]:
    """Return a batch of normalised noise and labels on the device."""
    return torch.randn(size, 3, 96, 96, device=DEVICE), torch.randint(0, 2, (size,), device=DEVICE)


def autocast() -> Any:
    """Return a context of autocast to fp16 on a GPU, or one that does nothing on a CPU."""
    return torch.autocast("cuda", torch.float16) if CUDA else contextlib.nullcontext()


def reference_loop(batches: Callable[[], Batches]) -> Callable[[], Iterator[int]]:
    """Return the reference's training loop in contiguous float32. It reads the loss of each step."""
    model = create_reference_network().to(DEVICE).train()
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


def timm_loop(batches: Callable[[], Batches]) -> Callable[[], Iterator[int]]:
    """Return a training loop like timm's script with --amp --channels-last: its network, scaler and optimizer.

    It reads the loss of each step, as the script does in one process.
    """
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, NativeScaler

    model = create_network().train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=0.0)
    scaler, losses = NativeScaler(DEVICE.type), AverageMeter()

    def loop() -> Iterator[int]:
        for images, labels in batches():
            images = images.to(DEVICE, non_blocking=True).contiguous(memory_format=torch.channels_last)
            labels = labels.to(DEVICE, non_blocking=True)
            with autocast():
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            scaler(loss, optimizer, parameters=model.parameters())
            losses.update(loss.item(), len(labels))
            yield len(labels)

    return loop


def create_lightning_trainer(**options: Any) -> Any:
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


def create_lightning_module(clock: StepClock) -> Any:
    """Return a minimal LightningModule that trains the network and counts each step with the clock."""
    import lightning.pytorch as pl

    class Classifier(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = create_reference_network()

        def training_step(self, batch: Any, number: int) -> Tensor:
            images, labels = batch
            clock.step(len(labels))
            return nn.functional.cross_entropy(self.model(images), labels)

        def predict_step(self, batch: Any, number: int) -> Tensor:
            clock.step(len(batch[0]))
            return self.model(batch[0]).softmax(1)

        def on_train_end(self) -> None:
            clock.stop()

        def on_predict_end(self) -> None:
            clock.stop()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=LR)

    return Classifier()


class StepClock:
    """A clock that measures images per second without the `skipped` first steps."""

    def __init__(self, skipped: int) -> None:
        self.skipped, self.steps, self.images, self.began, self.seconds = skipped, 0, 0, 0.0, 0.0

    def step(self, rows: int) -> None:
        """Count the start of a step."""
        if self.steps == self.skipped:
            _synchronize(DEVICE)
            self.began, self.images = time.perf_counter(), 0
        self.steps += 1
        self.images += rows

    def stop(self) -> None:
        """Stop the clock after the last step, before the Trainer moves the network back to the host."""
        _synchronize(DEVICE)
        self.seconds = time.perf_counter() - self.began

    def rate(self) -> float:
        """Return images per second until the clock was stopped."""
        return self.images / self.seconds


def lightning_contender(batches: Callable[[], Batches], skipped: int, *, predict: bool = False) -> Callable[[], float]:
    """Return a contender that measures Trainer.fit or Trainer.predict, without the start and the first steps."""

    def measure_rate() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clock = StepClock(skipped)
            module = create_lightning_module(clock)
            if predict:
                create_lightning_trainer().predict(module, RepeatableBatches(batches), return_predictions=False)
            else:
                create_lightning_trainer(max_epochs=1).fit(module, RepeatableBatches(batches))
            return clock.rate()

    return measure_rate


class RepeatableBatches:
    """An iterable of batches that can be iterated several times, as Lightning requires."""

    def __init__(self, batches: Callable[[], Batches]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return a new iterator."""
        return iter(self.batches())


def run_all(loop: Callable[[], Iterator[int]]) -> Function:
    """Return a function that runs all steps of the loop."""
    return lambda: sum(loop())


def predict_with_reference(images: Tensor, views: int) -> Function:
    """Return a function that makes one eager float32 forward pass per view in contiguous memory format."""
    model = create_reference_network().to(DEVICE).eval()

    def predict() -> None:
        with torch.no_grad():
            for _ in range(views):
                model(images).softmax(1)

    return predict


def predict_with_timm(images: Tensor, views: int) -> Function:
    """Return a function that makes one forward pass per view like timm's script with --amp --channels-last."""
    model = create_network().eval()

    def predict() -> None:
        with torch.inference_mode():
            for _ in range(views):
                with autocast():
                    output = model(images.contiguous(memory_format=torch.channels_last))
                output.float().softmax(1).cpu()

    return predict
