"""On a GPU: training and eight views of DenseNet-121 at 96 px against the reference, and two processes on one card.

python -m benchmarks.gpu
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks import reference
from benchmarks.timing import ROOT, Result, interleave, publish
from claris_kaggle.config import TrainConfig
from claris_kaggle.dataset import Batch
from claris_kaggle.distributed import World
from claris_kaggle.engine import Learner, train_step
from claris_kaggle.inference import view_logits
from claris_kaggle.model import create_model, fold_batch_norm

BATCH, BLOCK, STEPS = 128, 512, 20
# Unfused traffic of DenseNet-121 at 96 px in fp16, bytes an image: forward, and forward with backward.
TRAFFIC = {"predict": 40e6, "train": 102e6}


def per_second(images: int, work: Callable[[], object]) -> Callable[[], float]:
    """Images a second of work on the device."""

    def measured() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return images / (time.perf_counter() - began)

    return measured


def train_reference(device: torch.device) -> Callable[[], float]:
    """The reference's steps in float32 on tensors that are on the card."""
    model = reference.create().to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.randn(BATCH, 3, 96, 96, device=device)
    labels = torch.randint(0, 2, (BATCH,), device=device)

    def work() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return per_second(BATCH * STEPS, work)


def train_ours(device: torch.device, *, compiled: bool = False) -> Callable[[], float]:
    """Our steps from uint8 batches on the host."""
    config = TrainConfig(weights="none", batch_size=BATCH, lr=1e-4, color=1.0, precision="fp16")
    learner = Learner(config, World(0, 0, 1, device), create_model("densenet121"))
    if compiled:
        learner.wrapped = torch.compile(learner.model)  # type: ignore[assignment]
    batch = Batch(
        torch.randint(0, 256, (BATCH, 96, 96, 3), dtype=torch.uint8).pin_memory(), torch.arange(BATCH) % 8,
        torch.arange(BATCH) % 2, torch.zeros(BATCH, 6), torch.zeros(BATCH, 6), float(BATCH),
    )  # fmt: skip

    def work() -> None:
        for _ in range(STEPS):
            train_step(learner, batch, 1e-4)

    return per_second(BATCH * STEPS, work)


def predict_reference(device: torch.device) -> Callable[[], float]:
    """Eight eager passes in float32, contiguous."""
    model = reference.create().to(device).eval()
    images = torch.randn(BLOCK, 3, 96, 96, device=device)

    def work() -> None:
        with torch.no_grad():
            for _ in range(8):
                model(images).softmax(1)

    return per_second(BLOCK, work)


def predict_ours(device: torch.device) -> Callable[[], float]:
    """Our eight views of a block from the host."""
    config = TrainConfig(weights="none", precision="fp16")
    model = create_model("densenet121").to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folded = fold_batch_norm(model)
    images = torch.randint(0, 256, (BLOCK, 96, 96, 3), dtype=torch.uint8).pin_memory()

    def work() -> None:
        with torch.inference_mode():
            view_logits(folded, images.to(device, non_blocking=True), config, 8)

    return per_second(BLOCK, work)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that the card moves in a plain copy, read and written."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    measured = per_second(2 * len(source) * 20, lambda: [target.copy_(source) for _ in range(20)])
    return statistics.median(measured() for _ in range(5))


def two_on_one_card() -> str:
    """Whether the tests of two processes hold with both of them on this card."""
    tests = "tests/test_pipeline.py"
    command = [sys.executable, "-m", "pytest", "-q", tests, "-k", "two_processes or world_size"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    return f"exit code {done.returncode}: {last}"


def main() -> None:
    """Compare, print and keep; without a GPU, say so."""
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured", file=sys.stderr)
        raise SystemExit(1)
    device = torch.device("cuda", 0)
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name(device)
    training = interleave(
        {
            "reference, float32": train_reference(device),
            "ours, fp16, channels-last": train_ours(device),
            "ours, compiled": train_ours(device, compiled=True),
        },
        rounds=5, warm_up=2,
    )  # fmt: skip
    views = interleave(
        {"reference, float32": predict_reference(device), "ours, fp16, channels-last": predict_ours(device)},
        rounds=5, warm_up=2,
    )  # fmt: skip
    bandwidth = copy_bandwidth(device)
    ours = {
        "train": statistics.median(training["ours, fp16, channels-last"]),
        "predict": 8 * statistics.median(views["ours, fp16, channels-last"]),
    }
    facts = {
        f"{part}, share of the copy bandwidth of {bandwidth / 1e9:,.0f} GB/s": f"{rate * TRAFFIC[part] / bandwidth:.0%}"
        for part, rate in ours.items()
    }
    facts["two processes on this card"] = two_on_one_card()
    publish(Result("gpu_training", f"training DenseNet-121, batch {BATCH}, {name}", "images/s", training, facts))
    publish(Result("gpu_inference", f"eight views of DenseNet-121, block {BLOCK}, {name}", "patches/s", views))


if __name__ == "__main__":
    Path(ROOT / "docs" / "performance").mkdir(parents=True, exist_ok=True)
    main()
