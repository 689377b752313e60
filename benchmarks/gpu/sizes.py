"""The network alone by input size, batch size and precision: images per second, peak memory, share of the bandwidth.

python -m benchmarks.gpu.sizes training|inference [--quick] [--out DIR] [--seconds 60]
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

from benchmarks.gpu.card import (
    CARD,
    CUDA,
    DEVICE,
    LR,
    MODEL,
    begin_peak,
    channels_last_network,
    copy_bandwidth,
    median,
    peak_gigabytes,
    seconds_of,
)
from benchmarks.gpu.graphs import capture_forward, record
from benchmarks.timing import QUICK, Grid, number, option, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.models.factory import create_model, fuse_batch_norm
from claris_kaggle.runtime.precision import DTYPES

SIDES = (96, 128) if QUICK else (96, 128, 192, 224)
# Those that matter most come first: what is left when the time is over stays empty.
BATCHES = {"training": (128, 64, 32, 512, 256), "inference": (512, 128, 64, 256)}
ROUNDS, LEAST_SECONDS = (1, 0.0) if QUICK else (3, 0.12)
COLUMNS = [
    f"{CARD}: side", "GFLOP an image", "batch", "fp16 eager", "fp16 CUDA graph", "bf16 eager", "bf16 CUDA graph",
    "peak GB, fp16", "share of a copy's bandwidth",
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
        """Return the cells as text. The share is that of the fastest rate, with unfused memory traffic."""
        used = max(self.rates) * traffic * (self.side / 96) ** 2 / bandwidth
        rates = [number(rate) if rate else "no" for rate in self.rates]
        return [str(self.side), f"{self.gflop:.2f}", str(self.batch), *rates, f"{self.gigabytes:.2f}", f"{used:.0%}"]


class Trainer:
    """The network with optimizer and scaler, used for every size."""

    def __init__(self) -> None:
        self.model = channels_last_network().train()
        lr = torch.tensor(LR, device=DEVICE) if CUDA else LR
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, fused=CUDA, capturable=CUDA)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=CUDA)

    def steps(self, images: Tensor, precision: str) -> tuple[Step, Callable[[], Step]]:
        """Return a training step on the images, and a function that records it."""
        labels = torch.arange(len(images), device=DEVICE) % 2

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, DTYPES[precision], enabled=CUDA):
                loss = nn.functional.cross_entropy(self.model(images).float(), labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

        return step, lambda: record(step)


class Predictor:
    """The network with folded batch norms, used for every size."""

    def __init__(self) -> None:
        self.model = fuse_batch_norm(channels_last_network())

    def steps(self, images: Tensor, precision: str) -> tuple[Step, Callable[[], Step]]:
        """Return a forward pass on the images, and a function that records it."""

        @torch.inference_mode()
        def forward(images: Tensor) -> Tensor:
            with torch.autocast(DEVICE.type, DTYPES[precision], enabled=CUDA):
                result: Tensor = self.model(images)
            return result

        def recorded() -> Step:
            replay = capture_forward(forward, images)
            return lambda: replay(images)

        return lambda: forward(images), recorded


def gflop_of(side: int) -> float:
    """Return the GFLOP of a forward pass for one image; a multiply-add counts as two."""
    model = create_model(MODEL).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 1e9


def measure(network: Trainer | Predictor, side: int, gflop: float, batch: int) -> Row:
    """Measure eager and recorded steps in both precisions, interleaved, and the peak memory of the eager ones."""
    images = torch.randn(batch, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
    rates: list[float] = []
    gigabytes = 0.0
    for precision in ("fp16", "bf16"):
        begin_peak()
        eager, recorded = network.steps(images, precision)
        for _ in range(3):
            eager()
        peak = peak_gigabytes()
        gigabytes = gigabytes or peak
        begin_peak()  # a graph has memory of its own
        ways = [eager]
        if CUDA and fits_twice(peak):
            with contextlib.suppress(RuntimeError):
                ways.append(recorded())
        rates += [*rates_of(ways, batch), 0.0][:2]
        del ways, recorded
    first, second, third, fourth = rates
    return Row(side, gflop, batch, (first, second, third, fourth), gigabytes)


def fits_twice(gigabytes: float) -> bool:
    """Return True if the GPU has twice the memory of eager steps: a graph needs its own."""
    return 2.1 * gigabytes * 1e9 < torch.cuda.get_device_properties(DEVICE).total_memory


def rates_of(ways: list[Step], batch: int) -> list[float]:
    """Return the median images per second of each way, interleaved."""
    repeats = [max(1, round(LEAST_SECONDS / seconds_of(way))) for way in ways]
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for place, (way, times) in enumerate(zip(ways, repeats, strict=True)):
            seconds = seconds_of(lambda way=way, times=times: [way() for _ in range(times)])  # type: ignore[misc]
            found[place].append(batch * times / seconds)
    return [median(one) for one in found]


def try_row(network: Trainer | Predictor, side: int, gflop: float, batch: int) -> Row:
    """Return the row, without rates if it does not fit into the memory of the GPU."""
    try:
        return measure(network, side, gflop, batch)
    except RuntimeError:  # out of memory in the allocator, in cuDNN or in a capture
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return Row(side, gflop, batch, (0.0, 0.0, 0.0, 0.0), 0.0)


def keep(name: str, rows: list[Row], bandwidth: float, left: int) -> None:
    """Print the rows so far, and write them."""
    traffic = TRAFFIC["train" if name == "training" else "predict"]
    notes = ["Without cuDNN's trials of its algorithms; images in float32 on the card; 'no': more than its memory."]
    notes += [f"The time was over before {left} more sizes."] if left else []
    title = f"{name} by side and batch size, DenseNet-121, images/s, {CARD}"
    facts = {"a copy on this card, read and written": f"{bandwidth / 1e9:,.0f} GB/s"}
    ordered = sorted(rows, key=lambda row: (row.side, row.batch))
    cells = [row.cells(traffic, bandwidth) for row in ordered]
    publish(Grid(f"gpu_{name}_sizes", title, COLUMNS, cells, facts, notes))


def main(name: str) -> None:
    """Measure one size after another until the time is over."""
    ends = time.monotonic() + float(option("--seconds", "60"))
    torch.backends.cudnn.benchmark = False
    bandwidth, network = copy_bandwidth(), Trainer() if name == "training" else Predictor()
    flops = {side: gflop_of(side) for side in SIDES}
    batches = (2, 4) if QUICK else BATCHES[name]
    todo = [(side, batch) for batch in batches for side in SIDES]
    rows: list[Row] = []
    for side, batch in todo:
        if time.monotonic() > ends:
            break
        rows.append(try_row(network, side, flops[side], batch))
        print(rows[-1], file=sys.stderr, flush=True)
        keep(name, rows, bandwidth, len(todo) - len(rows))


if __name__ == "__main__":
    main(sys.argv[1])
