"""Jobs as plain values for other processes, and torch settings for the duration of a job."""

# No `from __future__ import annotations` here: tools that read the types of inherited fields would look up the names in
# the modules of the subclasses.
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.runtime.cudnn_fallback import DEFAULT_MODE

_PATH_TYPES: dict[str, type[DataDir] | type[RunDir] | type[Path]] = {
    "data": DataDir, "run_dir": RunDir, "fold_file": Path, "cache": Path, "slides": Path, "extra": Path
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """The inputs and options that training and prediction share. Other processes read them from a file.

    Attributes:
        data: folder of the competition's files.
        run_dir: folder of the run.
        cache: folder of the packed patches.
        nproc: number of processes on this machine; 0 means one per GPU, or one process without a GPU.
        time_limit: time limit in seconds; None for no limit.
        cudnn: the cuDNN mode of the first attempt, one of `config.CUDNN_MODES`.
    """

    data: DataDir
    run_dir: RunDir
    cache: Path
    nproc: int = 0
    time_limit: float | None = None
    cudnn: str = DEFAULT_MODE

    def __post_init__(self) -> None:
        """Convert paths that are given as text."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in _PATH_TYPES and isinstance(value, str | Path):
                object.__setattr__(self, item.name, _PATH_TYPES[item.name](Path(value)))

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON-serializable values, with absolute paths as text."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values |= {name: value.root for name, value in values.items() if isinstance(value, DataDir | RunDir)}
        return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the job whose `to_json` returned `content`."""
        return cls(**content)


@contextlib.contextmanager
def torch_settings(threads: int, *, autotune: bool) -> Iterator[None]:
    """Set torch's CPU threads and cuDNN's autotuning within the context, and restore both afterwards.

    Args:
        threads: CPU threads of this process.
        autotune: let cuDNN benchmark its algorithms on the first batch of each shape.
    """
    previous = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = autotune
    try:
        yield
    finally:
        torch.set_num_threads(previous[0])
        torch.backends.cudnn.benchmark = previous[1]
