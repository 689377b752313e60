"""The device with its timing, bandwidth and memory, the network, and synthetic inputs."""

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

from benchmarks.timing import QUICK
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
CARD = torch.cuda.get_device_name(DEVICE) if CUDA else "a CPU in its place"
MODEL = "tiny" if QUICK else "densenet121"
LR = 1e-4
Work = Callable[[], object]
Contender = Callable[[], float]


def config_of(precision: str, batch_size: int) -> TrainConfig:
    """Return the config of all benchmarks here. A CPU computes in float32."""
    return TrainConfig(
        model=MODEL, weights="none", batch_size=batch_size, lr=LR, color=1.0, precision=precision if CUDA else "fp32"
    )


def seconds_of(work: Work) -> float:
    """Return the seconds that the device takes for the work."""
    _synchronize(DEVICE)
    began = time.perf_counter()
    work()
    _synchronize(DEVICE)
    return time.perf_counter() - began


def rate_of(images: int, work: Work, *, trials: bool = False) -> Callable[[], float]:
    """Return a function that measures images per second of the work, with or without cuDNN autotuning."""

    def measured() -> float:
        torch.backends.cudnn.benchmark = trials
        return images / seconds_of(work)

    return measured


def rate_of_steps(loop: Callable[[], object], skipped: int) -> float:
    """Return images per second of a loop that yields the rows of each step, without its first steps."""
    torch.backends.cudnn.benchmark = True
    images, began = 0, 0.0
    for number, rows in enumerate(loop()):  # type: ignore[arg-type, var-annotated]
        if number == skipped:
            _synchronize(DEVICE)
            began, images = time.perf_counter(), 0
        else:
            images += rows
    _synchronize(DEVICE)
    return images / (time.perf_counter() - began)


def begin_each(makers: Mapping[str, Callable[[], Contender]], facts: dict[str, str]) -> dict[str, Contender]:
    """Return the contenders that can be created and run once. The error of any other is added to `facts`."""
    found = {}
    for name, make in makers.items():
        try:
            contender = make()
            contender()
            found[name] = contender
        except Exception as error:  # of other people's libraries and of the card: all kinds
            facts[f"not measured: {name}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
    return found


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in pinned memory on a GPU machine, as the loader gives it."""
    return tensor.pin_memory() if CUDA else tensor


def channels_last_network() -> nn.Module:
    """Return the network on the device, in channels-last memory."""
    network: nn.Module = create_model(MODEL).to(device=DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def host_batch(size: int) -> Batch:
    """Return a batch of noise on the host."""
    images = torch.randint(0, 256, (size, *PATCH_SHAPE), dtype=torch.uint8)
    numbers, draws = torch.arange(size), torch.zeros(size, 6)
    return Batch(images, numbers % 8, numbers % 2, draws, draws, float(size)).map(pinned)


def noise_pack(rows: int) -> Pack:
    """Return different patches of noise in memory, too many for the cache."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, *PATCH_SHAPE), dtype=np.uint8)
    return Pack([f"{number:040x}" for number in range(rows)], pixels, Path())


def copy_bandwidth() -> float:
    """Return bytes per second of a copy on the device; counts bytes read and written."""
    source = torch.empty(1 << 20 if QUICK else 1 << 28, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    work = rate_of(2 * len(source) * 20, lambda: [target.copy_(source) for _ in range(20)])
    return statistics.median(work() for _ in range(5))


def upload_bandwidth() -> float:
    """Return bytes per second from pinned memory to the device."""
    source = pinned(torch.empty(1 << 20 if QUICK else 1 << 27, dtype=torch.uint8))
    target = torch.empty_like(source, device=DEVICE)
    work = rate_of(len(source) * 5, lambda: [target.copy_(source, non_blocking=True) for _ in range(5)])
    return statistics.median(work() for _ in range(3))


def begin_peak() -> None:
    """Reset the peak memory of the device."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(DEVICE)


def peak_gigabytes() -> float:
    """Return the peak of allocated memory since `begin_peak`, in GB; 0 without a GPU."""
    return torch.cuda.max_memory_allocated(DEVICE) / 1e9 if CUDA else 0.0


def waits(work: Work) -> str:
    """Return a sentence on whether the work makes the host wait for the device, from torch's sync debug mode."""
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


def median(values: Sequence[float]) -> float:
    """Return the median; 0 for an empty sequence."""
    return statistics.median(values) if values else 0.0
