"""Shared by the GPU benchmarks: time, bandwidth and memory of the device, the network, and synthetic inputs."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.timing import QUICK, option
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import Batch
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.training.throughput import _synchronize

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
WORLD = World(0, 0, 1, DEVICE)
GPU_NAME = torch.cuda.get_device_name(DEVICE) if CUDA else "CPU"
MODEL = "tiny" if QUICK else "densenet121"
LR = 1e-4
# The measurements of a section should end at this time of `time.monotonic()`.
END = time.monotonic() + float(option("--seconds", "300"))
Function = Callable[[], object]
Contender = Callable[[], float]


def create_config(precision: str, batch_size: int) -> TrainConfig:
    """Return the config of all GPU benchmarks. On a CPU the precision is float32."""
    return TrainConfig(
        model=MODEL, weights="none", batch_size=batch_size, lr=LR, color=1.0, precision=precision if CUDA else "fp32"
    )


def measure_seconds(function: Function) -> float:
    """Return the seconds of a call until the device has finished its work."""
    _synchronize(DEVICE)
    began = time.perf_counter()
    function()
    _synchronize(DEVICE)
    return time.perf_counter() - began


def device_rate_of(images: int, create: Callable[[], Function], *, autotune: bool = False) -> Callable[[], Contender]:
    """Return a function that creates a contender, with or without cuDNN autotuning.

    The contender calls the function that `create` returns, which processes this number of images, and measures until
    the device has finished. A graph that `create` records keeps the cuDNN algorithms of that moment.
    """

    def create_contender() -> Contender:
        torch.backends.cudnn.benchmark = autotune
        function = create()

        def measure_rate() -> float:
            torch.backends.cudnn.benchmark = autotune
            return images / measure_seconds(function)

        return measure_rate

    return create_contender


def measure_step_rate(loop: Callable[[], object], skipped: int) -> float:
    """Return images per second of a loop that yields the batch size of each step, without the `skipped` first steps."""
    torch.backends.cudnn.benchmark = True
    images, began = 0, 0.0
    for step, rows in enumerate(loop()):  # type: ignore[arg-type, var-annotated]
        if step == skipped:
            _synchronize(DEVICE)
            began, images = time.perf_counter(), 0
        else:
            images += rows
    _synchronize(DEVICE)
    return images / (time.perf_counter() - began)


def create_contenders(
    factories: Mapping[str, Callable[[], Contender]], facts: dict[str, str], rates: dict[str, list[float]] | None = None
) -> dict[str, Contender]:
    """Return the contenders that can be created and run once. The errors of the others are added to `facts`.

    The rates of the first runs are added to `rates`. They include autotuning and compilation, unless a contender
    leaves out its first steps.
    """
    contenders = {}
    for name, create in factories.items():
        try:
            contender = create()
            rate = contender()
            contenders[name] = contender
            if rates is not None:
                rates[name] = [rate]
        except Exception as error:  # other libraries and the GPU can raise any error
            facts[f"not measured: {name}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
    return contenders


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in pinned memory if there is a GPU, as the loader does."""
    return tensor.pin_memory() if CUDA else tensor


def create_network() -> nn.Module:
    """Return the network on the device, in channels-last memory."""
    network: nn.Module = create_model(MODEL).to(device=DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def create_host_batch(size: int) -> Batch:
    """Return a batch of noise on the host."""
    images = torch.randint(0, 256, (size, *PATCH_SHAPE), dtype=torch.uint8)
    numbers, draws = torch.arange(size), torch.zeros(size, 6)
    return Batch(images, numbers % 8, numbers % 2, draws, draws, float(size)).map(pin)


def create_noise_pack(rows: int) -> Pack:
    """Return a pack of different patches of noise in memory, larger than the CPU cache."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, *PATCH_SHAPE), dtype=np.uint8)
    return Pack([f"{number:040x}" for number in range(rows)], pixels, Path())


def measure_copy_bandwidth() -> float:
    """Return the bytes per second that a copy on the device reads and writes."""
    source = torch.empty(1 << 20 if QUICK else 1 << 28, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(20):
            target.copy_(source)

    return statistics.median(2 * len(source) * 20 / measure_seconds(copy) for _ in range(5))


def measure_upload_bandwidth() -> float:
    """Return the bytes per second of a copy from pinned memory to the device."""
    source = pin(torch.empty(1 << 20 if QUICK else 1 << 27, dtype=torch.uint8))
    target = torch.empty_like(source, device=DEVICE)

    def copy() -> None:
        for _ in range(5):
            target.copy_(source, non_blocking=True)

    return statistics.median(len(source) * 5 / measure_seconds(copy) for _ in range(3))


def reset_peak_memory() -> None:
    """Reset the peak of allocated memory."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(DEVICE)


def read_peak_gigabytes() -> float:
    """Return the peak of allocated memory since `reset_peak_memory`, in GB; 0 without a GPU."""
    return torch.cuda.max_memory_allocated(DEVICE) / 1e9 if CUDA else 0.0


def describe_waits(function: Function) -> str:
    """Return a text on whether a call makes the host wait for the device, from torch's sync debug mode."""
    function()
    if not CUDA:
        return "unknown without a GPU"
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError as error:
        return f"yes: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def median(values: Sequence[float]) -> float:
    """Return the median; 0 for an empty sequence."""
    return statistics.median(values) if values else 0.0
