"""Repeat work after a cuDNN failure: first without autotuning, then with contiguous tensors.

A failed cuDNN call can leave the CUDA context unusable, while the other ranks wait in a collective call. So all ranks
are replaced by new processes. These resume from the files of the run: from the last checkpoint in training, after the
last finished fold in prediction.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from claris_kaggle.core.config import CUDNN_MODES
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import CudnnError, first_line
from claris_kaggle.runtime.distributed import World, _launch_ranks, join_world
from claris_kaggle.runtime.rank_process import _write_job

_RunResult = TypeVar("_RunResult")
DEFAULT_MODE, _NO_AUTOTUNE_MODE, _CONTIGUOUS_MODE = CUDNN_MODES
_MODE_DESCRIPTIONS = {
    _NO_AUTOTUNE_MODE: "without autotuning",
    _CONTIGUOUS_MODE: "with contiguous tensors and without autotuning",
}
_NEXT_MODE_HINT = {
    DEFAULT_MODE: "Run the same command with --cudnn no-autotune",
    _NO_AUTOTUNE_MODE: "Run the same command with --cudnn contiguous",
    _CONTIGUOUS_MODE: "Update the GPU driver, or use another GPU or --precision",
}


# Texts of torch: one call failed, or all algorithms for a convolution failed (with and without autotuning).
_CUDNN_FAILURES = ("cuDNN error", "CUDNN_STATUS_", "unable to find an engine")


def _is_cudnn_error(error: BaseException) -> bool:
    """Return True if torch reports that a cuDNN call failed.

    >>> _is_cudnn_error(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")), _is_cudnn_error(ValueError("x"))
    (True, False)
    """
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CUDNN_FAILURES)


@contextlib.contextmanager
def convert_cudnn_failures(name: str, mode: str) -> Iterator[None]:
    """Convert torch's cuDNN failures into CudnnError.

    Args:
        name: name of the computation, for the message.
        mode: the mode in use, one of CUDNN_MODES.
    Raises:
        CudnnError: a cuDNN call failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_cudnn_error(error):
            raise
        raise CudnnError(f"{name}: cuDNN failed on the GPU ({first_line(error)})", "", _NEXT_MODE_HINT[mode]) from error


def move_network(model: nn.Module, device: torch.device, mode: str) -> nn.Module:
    """Move the network to the device and return it.

    The memory format is channels-last. In mode `contiguous`, weights and inputs are contiguous.
    """
    layout = torch.contiguous_format if mode == _CONTIGUOUS_MODE else torch.channels_last
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    if mode == _CONTIGUOUS_MODE:
        model.register_forward_pre_hook(_make_contiguous)
    return model


def _make_contiguous(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return contiguous copies of the inputs (a forward pre-hook)."""
    return tuple(tensor.contiguous() for tensor in inputs)


def run_ranks(
    mode: str,
    nproc: int,
    entry: str,
    make_job: Callable[[str], dict[str, object]],
    run_in_process: Callable[[World], _RunResult],
    read_result: Callable[[], _RunResult],
) -> _RunResult:
    """Run a job on all ranks of this machine, and retry with the next mode after a cuDNN failure.

    Args:
        mode: the mode of the first attempt, one of CUDNN_MODES.
        nproc: number of processes on this machine. With 1, the first attempt runs in this process.
        entry: function that each rank calls with the job, as `package.module:function`.
        make_job: returns the job for a mode as JSON-serializable values, for the file that the ranks read.
        run_in_process: runs the job in this process.
        read_result: reads the result that other processes wrote.
    Returns:
        The result of `run_in_process` or `read_result`.
    Raises:
        CudnnError: cuDNN also failed with contiguous tensors.
        ClarisError: any other failure of a rank.
    """
    current_mode = mode
    while True:
        try:
            if nproc == 1 and current_mode == mode:
                with join_world() as world:
                    return run_in_process(world)
            with tempfile.TemporaryDirectory(prefix="claris-ranks-") as folder:
                _write_job(Path(folder) / "job.json", entry, make_job(current_mode))
                _launch_ranks(nproc, "claris_kaggle.runtime.rank_process", str(Path(folder) / "job.json"))
            return read_result()
        except CudnnError as error:
            if current_mode == _CONTIGUOUS_MODE:
                raise
            found = error.found
        _free_gpu_memory()
        current_mode = CUDNN_MODES[CUDNN_MODES.index(current_mode) + 1]
        log_info(f"{found}; retrying {_MODE_DESCRIPTIONS[current_mode]}")


def _free_gpu_memory() -> None:
    """Release the GPU memory of the failed attempt, so that a new process can use it."""
    gc.collect()
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # the context may be unusable
            torch.cuda.empty_cache()
