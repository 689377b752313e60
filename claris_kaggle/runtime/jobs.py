"""Jobs as plain values for other processes, and torch settings for the duration of a job."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from claris_kaggle.core.paths import DataDir, RunDir


def convert_places(job: Any) -> None:
    """Convert path fields of a frozen job from text to `Path`, `DataDir` or `RunDir`, in place."""
    kinds: dict[str, Any] = {"data": DataDir, "run_dir": RunDir, "fold_file": Path, "cache": Path, "slides": Path}
    for item in dataclasses.fields(job):
        value = getattr(job, item.name)
        if item.name in kinds and isinstance(value, str | Path):
            object.__setattr__(job, item.name, kinds[item.name](value))


def job_values(job: Any) -> dict[str, Any]:
    """Return the fields of a job as JSON-serializable values, with absolute paths as text."""
    values = {item.name: getattr(job, item.name) for item in dataclasses.fields(job)}
    values |= {name: value.root for name, value in values.items() if isinstance(value, DataDir | RunDir)}
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}


@contextlib.contextmanager
def torch_settings(threads: int, *, autotune: bool) -> Iterator[None]:
    """Set torch's CPU threads and cuDNN's autotuning within the context, and restore both afterwards.

    Args:
        threads: CPU threads of this process.
        autotune: let cuDNN benchmark its algorithms on the first batch of each shape.
    """
    kept = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = autotune
    try:
        yield
    finally:
        torch.set_num_threads(kept[0])
        torch.backends.cudnn.benchmark = kept[1]
