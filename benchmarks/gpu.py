"""On a GPU: training and eight views of DenseNet-121 at 96 px against the reference, and two processes on one card.

python -m benchmarks.gpu
python -m benchmarks.gpu --quick    # every part tried with a small network, on a CPU where there is no GPU
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import reference
from benchmarks.timing import QUICK, ROOT, Result, interleave, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.config import TrainConfig
from claris_kaggle.dataset import Batch, EpochBatches, TrainSet
from claris_kaggle.distributed import World
from claris_kaggle.engine import LOOK_EVERY, Learner, train_epoch, train_step
from claris_kaggle.inference import predict, view_logits
from claris_kaggle.model import create_model, fold_batch_norm
from claris_kaggle.pack import Pack
from claris_kaggle.patches import SHAPE
from claris_kaggle.rates import wait_for

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
WORLD = World(0, 0, 1, DEVICE)
MODEL, BATCH, BLOCK, STEPS, ROWS, BLOCKS = "densenet121", 128, 512, 20, 20_480, 8
if QUICK:
    MODEL, BATCH, BLOCK, STEPS, ROWS, BLOCKS = "tiny", 4, 4, 1, 100, 2
CONFIG = TrainConfig(
    model=MODEL, weights="none", batch_size=BATCH, lr=1e-4, color=1.0, precision="fp16" if CUDA else "fp32"
)
TESTS = "train_exactly_the_mean_gradient or of_any_world_size"
Work = Callable[[], object]


def per_second(images: int, work: Work, *, trials: bool) -> Callable[[], float]:
    """Images a second of work on the device, with or without cuDNN's trials of its algorithms."""

    def measured() -> float:
        torch.backends.cudnn.benchmark = trials
        wait_for(DEVICE)
        began = time.perf_counter()
        work()
        wait_for(DEVICE)
        return images / (time.perf_counter() - began)

    return measured


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as the loader hands it over."""
    return tensor.pin_memory() if CUDA else tensor


def reference_steps() -> Work:
    """The reference's steps in float32 on tensors that are on the card."""
    model = reference.create().to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.randn(BATCH, 3, 96, 96, device=DEVICE)
    labels = torch.randint(0, 2, (BATCH,), device=DEVICE)

    def work() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return work


def our_steps(*, compiled: bool = False) -> Work:
    """Our steps from uint8 batches on the host."""
    learner = Learner(CONFIG, WORLD, create_model(MODEL), compiled=compiled)
    images = torch.randint(0, 256, (BATCH, *SHAPE), dtype=torch.uint8)
    numbers, draws = torch.arange(BATCH), torch.zeros(BATCH, 6)
    parts = (pinned(part) for part in (images, numbers % 8, numbers % 2, draws, draws))
    batch = Batch(*parts, float(BATCH))

    def work() -> None:
        for _ in range(STEPS):
            train_step(learner, batch, 1e-4)

    return work


def many_patches() -> Pack:
    """One patch over and over, so that no disk is read."""
    patch = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return Pack([f"{number:040x}" for number in range(ROWS)], np.broadcast_to(patch, (ROWS, *SHAPE)), Path())


def our_epoch() -> Callable[[], float]:
    """Images a second of an epoch with loader and transfers, its first steps aside."""
    pack, learner = many_patches(), Learner(CONFIG, WORLD, create_model(MODEL))
    trainset = TrainSet(pack, pack.ids, np.arange(ROWS, dtype=np.int64) % 2)
    batches = EpochBatches(trainset, CONFIG, epoch=0, rank=0, world_size=1, turn_here=False)
    workers = min(4, os.cpu_count() or 1) if CUDA else 0

    def measured() -> float:
        torch.backends.cudnn.benchmark = True
        learner.step = 0
        done: list[tuple[float, int]] = []

        def between(rows: int) -> str:
            done.append((time.perf_counter(), rows))
            return ""

        train_epoch(learner, batches, workers, between)
        wait_for(DEVICE)
        first = LOOK_EVERY[DEVICE.type]  # the device was waited for in the step before this one
        return sum(rows for _, rows in done[first + 1 :]) / (time.perf_counter() - done[first][0])

    return measured


def reference_views() -> Work:
    """Eight eager passes in float32, contiguous."""
    model = reference.create().to(DEVICE).eval()
    images = torch.randn(BLOCK, 3, 96, 96, device=DEVICE)

    def work() -> None:
        with torch.no_grad():
            for _ in range(8):
                model(images).softmax(1)

    return work


def our_model(*, folded: bool = True) -> nn.Module:
    """The network as `claris predict` has it."""
    model = create_model(MODEL).to(device=DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fold_batch_norm(model) if folded else model.eval()


def our_views(model: Any) -> Work:
    """Our eight views of a block from the host."""
    images = pinned(torch.randint(0, 256, (BLOCK, *SHAPE), dtype=torch.uint8))

    def work() -> None:
        with torch.inference_mode():
            view_logits(model, images.to(DEVICE, non_blocking=True), CONFIG, 8)

    return work


def our_prediction() -> Work:
    """Some blocks through the loader."""
    pack, model = many_patches(), our_model()
    return lambda: predict(model, pack, pack.ids[: BLOCK * BLOCKS], WORLD, CONFIG, views=8)


def seconds_of(work: Work) -> str:
    """How long the work takes when it is done for the first time."""
    began = time.perf_counter()
    work()
    wait_for(DEVICE)
    return f"{time.perf_counter() - began:.0f} s"


def waits(work: Work) -> str:
    """Whether the work makes the host wait for the device, by torch's own watch over it."""
    work()
    if not CUDA:
        return "not known without a GPU"
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        return f"it waits: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def copy_bandwidth() -> float:
    """Bytes a second that the device moves in a plain copy, read and written."""
    source = torch.empty(1 << 20 if QUICK else 1 << 28, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copies = per_second(2 * len(source) * 20, lambda: [target.copy_(source) for _ in range(20)], trials=False)
    return statistics.median(copies() for _ in range(5))


def two_on_one_card() -> str:
    """Whether the tests of several processes hold with all of them on this card, in true float32."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_pipeline.py", "-k", TESTS]
    command += ["--collect-only"] if QUICK else []
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0", "NVIDIA_TF32_OVERRIDE": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    return f"exit code {done.returncode}: {last}"


def measure_training() -> tuple[dict[str, list[float]], dict[str, str]]:
    """Rates of training, and what belongs to them."""
    ours, compiled = our_steps(), our_steps(compiled=True)
    facts = {"waits for the device in a step": waits(ours), "first compiled step": seconds_of(compiled)}
    images = BATCH * STEPS
    rates = interleave(
        {
            "reference, float32": per_second(images, reference_steps(), trials=True),
            "ours, fp16, channels-last": per_second(images, ours, trials=True),
            "ours without cuDNN's trials": per_second(images, ours, trials=False),
            "ours, compiled": per_second(images, compiled, trials=True),
            "ours, an epoch with its loader": our_epoch(),
        },
        rounds=5, warm_up=2,
    )  # fmt: skip
    return rates, facts


def measure_views() -> tuple[dict[str, list[float]], dict[str, str]]:
    """Rates of eight views, and what belongs to them."""
    ours, compiled = our_views(our_model()), our_views(torch.compile(our_model(), dynamic=False))
    facts = {"waits for the device in a block": waits(ours), "first compiled block": seconds_of(compiled)}
    rates = interleave(
        {
            "reference, float32": per_second(BLOCK, reference_views(), trials=True),
            "ours, fp16, channels-last": per_second(BLOCK, ours, trials=False),
            "ours with cuDNN's trials": per_second(BLOCK, ours, trials=True),
            "ours without folding": per_second(BLOCK, our_views(our_model(folded=False)), trials=False),
            "ours, compiled": per_second(BLOCK, compiled, trials=False),
            "ours with its loader": per_second(BLOCK * BLOCKS, our_prediction(), trials=False),
        },
        rounds=5, warm_up=2,
    )  # fmt: skip
    return rates, facts


def main() -> None:
    """Compare, print and keep; without a GPU, say so."""
    if not CUDA and not QUICK:
        print("no GPU here: nothing was measured", file=sys.stderr)
        raise SystemExit(1)
    name = torch.cuda.get_device_name(DEVICE) if CUDA else "a CPU in its place"
    training, facts = measure_training()
    views, view_facts = measure_views()
    bandwidth = copy_bandwidth()
    shown = f"share of the card's {bandwidth / 1e9:,.0f} GB/s in a copy"
    rate = {"train": training["ours, fp16, channels-last"], "predict": views["ours, fp16, channels-last"]}
    passes = {"train": 1, "predict": 8}
    used = {part: statistics.median(rate[part]) * passes[part] * TRAFFIC[part] / bandwidth for part in rate}
    facts |= {shown: f"{used['train']:.0%}", "processes on one card": two_on_one_card()}
    view_facts |= {shown: f"{used['predict']:.0%}"}
    publish(Result("gpu_training", f"training DenseNet-121, batch {BATCH}, {name}", "images/s", training, facts))
    publish(
        Result("gpu_inference", f"eight views of DenseNet-121, block {BLOCK}, {name}", "patches/s", views, view_facts)
    )


if __name__ == "__main__":
    main()
