"""Measure the network alone by input size, batch size and precision: images/s, peak memory, share of the bandwidth.

python -m benchmarks.gpu.sizes training|inference [--quick] [--out DIR] [--seconds 300]
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.device import (
    CUDA,
    DEVICE,
    END,
    GPU_NAME,
    LR,
    MODEL,
    create_network,
    measure_copy_bandwidth,
    measure_seconds,
    median,
    read_peak_gigabytes,
    reset_peak_memory,
)
from benchmarks.gpu.graphs import capture_forward, record
from benchmarks.timing import QUICK, Grid, format_rate, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.models.factory import create_model, fuse_batch_norm
from claris_kaggle.runtime.precision import autocast

SIDES = (96, 128) if QUICK else (96, 128, 192, 224)
# The most important batch sizes come first. Those that are left at the time limit are not measured.
BATCHES = {"training": (128, 64, 32, 512, 256), "inference": (512, 128, 64, 256)}
ROUNDS, MIN_SECONDS = (1, 0.0) if QUICK else (3, 0.12)
COLUMNS = [
    f"{GPU_NAME}: input size", "GFLOP an image", "batch", "fp16 eager", "fp16 CUDA graph", "bf16 eager",
    "bf16 CUDA graph", "peak GB, fp16", "share of the copy bandwidth",
]  # fmt: skip
Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """The result for one input size and batch size; rates in images per second, memory in GB."""

    side: int
    gflop: float
    batch: int
    rates: tuple[float, float, float, float]
    gigabytes: float

    def cells(self, traffic: float, bandwidth: float) -> list[str]:
        """Return the cells as text. The share assumes the fastest rate and the memory traffic of unfused layers."""
        used = max(self.rates) * traffic * (self.side / 96) ** 2 / bandwidth
        rates = [format_rate(rate) if rate else "no" for rate in self.rates]
        return [str(self.side), f"{self.gflop:.2f}", str(self.batch), *rates, f"{self.gigabytes:.2f}", f"{used:.0%}"]


class Trainer:
    """The network with optimizer and scaler, used for every size."""

    def __init__(self) -> None:
        self.model = create_network().train()
        lr = torch.tensor(LR, device=DEVICE) if CUDA else LR
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, fused=CUDA, capturable=CUDA)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=CUDA)

    def steps(self, images: Tensor, precision: str) -> tuple[Step, Callable[[], Step]]:
        """Return a training step on the images, and a function that records it as a CUDA graph."""
        labels = torch.arange(len(images), device=DEVICE) % 2

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(DEVICE, precision if CUDA else "fp32"):
                loss = nn.functional.cross_entropy(self.model(images).float(), labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

        return step, lambda: record(step)


class Predictor:
    """The network with folded batch norms, used for every size."""

    def __init__(self) -> None:
        self.model = fuse_batch_norm(create_network())

    def steps(self, images: Tensor, precision: str) -> tuple[Step, Callable[[], Step]]:
        """Return a forward pass on the images, and a function that records it as a CUDA graph."""

        @torch.inference_mode()
        def forward(images: Tensor) -> Tensor:
            with autocast(DEVICE, precision if CUDA else "fp32"):
                result: Tensor = self.model(images)
            return result

        def record_forward() -> Step:
            replay = capture_forward(forward, images)
            return lambda: replay(images)

        return lambda: forward(images), record_forward


def count_gflop(side: int) -> float:
    """Return the GFLOP of a forward pass for one image; a multiply-add counts as two."""
    model = create_model(MODEL).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 1e9


def measure_row(network: Trainer | Predictor, side: int, gflop: float, batch: int) -> Row:
    """Measure eager and recorded steps in both precisions, and the peak memory of the eager steps."""
    images = torch.randn(batch, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
    rates: list[float] = []
    gigabytes = 0.0
    for precision in ("fp16", "bf16"):
        reset_peak_memory()
        eager, record_graph = network.steps(images, precision)
        for _ in range(3):
            eager()
        peak = read_peak_gigabytes()
        gigabytes = gigabytes or peak
        reset_peak_memory()  # releases cached memory: a graph has its own
        steps = [eager]
        if CUDA and fits_twice(peak):
            with contextlib.suppress(RuntimeError):
                steps.append(record_graph())
        rates += [*measure_rates(steps, batch), 0.0][:2]
        del steps, record_graph
    first, second, third, fourth = rates
    return Row(side, gflop, batch, (first, second, third, fourth), gigabytes)


def fits_twice(gigabytes: float) -> bool:
    """Return True if the GPU has twice the memory of eager steps, because a graph needs its own memory."""
    return 2.1 * gigabytes * 1e9 < torch.cuda.get_device_properties(DEVICE).total_memory


def measure_rates(steps: list[Step], batch: int) -> list[float]:
    """Return the median images per second of each step, measured in interleaved rounds."""
    repeats = [max(1, round(MIN_SECONDS / measure_seconds(step))) for step in steps]
    rates: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for values, step, times in zip(rates, steps, repeats, strict=True):
            seconds = measure_seconds(lambda step=step, times=times: [step() for _ in range(times)])  # type: ignore[misc]
            values.append(batch * times / seconds)
    return [median(values) for values in rates]


def measure_row_if_it_fits(network: Trainer | Predictor, side: int, gflop: float, batch: int) -> Row:
    """Return the row. It has no rates if the batch does not fit into the memory of the GPU."""
    try:
        return measure_row(network, side, gflop, batch)
    except RuntimeError:  # out of memory in the allocator, in cuDNN or in a capture
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return Row(side, gflop, batch, (0.0, 0.0, 0.0, 0.0), 0.0)


def publish_rows(name: str, rows: list[Row], bandwidth: float, left: int) -> None:
    """Print and save the rows that were measured so far."""
    traffic = TRAFFIC["train" if name == "training" else "predict"]
    notes = ["Without cuDNN autotuning. The images are float32 in GPU memory. 'no': does not fit into it."]
    notes += [f"{left} more sizes were not measured because of the time limit."] if left else []
    title = f"{name} by input size and batch size, DenseNet-121, images/s, {GPU_NAME}"
    facts = {"bandwidth of a copy on this GPU, read and written": f"{bandwidth / 1e9:,.0f} GB/s"}
    ordered = sorted(rows, key=lambda row: (row.side, row.batch))
    cells = [row.cells(traffic, bandwidth) for row in ordered]
    publish(Grid(f"gpu_{name}_sizes", title, COLUMNS, cells, facts, notes))


def main(name: str) -> None:
    """Measure one size after another until the time limit."""
    torch.backends.cudnn.benchmark = False
    bandwidth, network = measure_copy_bandwidth(), Trainer() if name == "training" else Predictor()
    flops = {side: count_gflop(side) for side in SIDES}
    batches = (2, 4) if QUICK else BATCHES[name]
    todo = [(side, batch) for batch in batches for side in SIDES]
    rows: list[Row] = []
    for side, batch in todo:
        if time.monotonic() > END:
            break
        rows.append(measure_row_if_it_fits(network, side, flops[side], batch))
        print(rows[-1], file=sys.stderr, flush=True)
        publish_rows(name, rows, bandwidth, len(todo) - len(rows))


if __name__ == "__main__":
    main(sys.argv[1])
