"""Rank, world size, the process group, and gathering of rows so that each row appears once.

`torchrun` starts the processes: through `_launch_ranks`, or the user's own torchrun on several machines. Rank and
world size come from its environment variables only. A single process runs the same code without a process group.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from claris_kaggle.core import errors, platforms
from claris_kaggle.core.errors import ClarisError, Stopped, TrainingError, UsageError
from claris_kaggle.core.files import hold_lock
from claris_kaggle.core.time_limit import exit_with_parent, restore_signals

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_Value = TypeVar("_Value")

_LAUNCHER_PID_VARIABLE = "CLARIS_LAUNCHED"  # process id of the parent that launched this rank
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The rank and the device of this process.

    Attributes:
        rank: 0..world_size-1, over all machines.
        local_rank: 0..local_size-1, on this machine.
        world_size: number of processes on all machines.
        local_size: number of processes on this machine.
        device: the GPU of the local rank, or the CPU.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes the files."""
        return self.rank == 0


def under_torchrun() -> bool:
    """Return True if torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_by_claris() -> bool:
    """Return True if `_launch_ranks` started this process. The parent has prepared the inputs and holds the lock."""
    return _LAUNCHER_PID_VARIABLE in os.environ


def choose_nproc(requested: int) -> int:
    """Return the number of processes for training or prediction.

    Args:
        requested: number of processes; 0 means one per GPU, or one process without a GPU.
    Raises:
        UsageError: `requested` is above 1 on a system without torchrun.
    """
    if requested > 1 and not platforms.SUPPORTS_DDP:
        raise UsageError(f"--nproc is {requested}", "several processes need Linux or macOS", "Give --nproc 1")
    return requested or (max(1, count_gpus()) if platforms.SUPPORTS_DDP else 1)


def count_gpus() -> int:
    """Return the number of GPUs that torch can use. `device_count` also counts those that need another driver."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Yield the `World` of this process, inside a process group if there are several processes.

    After a failure the group is not destroyed: NCCL would wait for the other processes, which wait for this one.
    """
    rank, local_rank, world_size = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if launched_by_claris():
        exit_with_parent(int(os.environ[_LAUNCHER_PID_VARIABLE]))  # the parent holds the lock
    if world_size <= 1:
        yield World(0, 0, 1, device)
        return
    # NCCL rejects two processes on one GPU; gloo accepts them.
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    has_own_gpu = cuda and local_size <= torch.cuda.device_count()
    with _stdout_to_stderr():
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_own_gpu else "gloo", timeout=_TIMEOUT)
    yield World(rank, local_rank, world_size, device, local_size)
    dist.destroy_process_group()


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr within the context: up to torch 2.10, gloo's C++ code prints connections to stdout."""
    sys.stdout.flush()
    saved_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved_stdout, 1)
        os.close(saved_stdout)


@contextlib.contextmanager
def lock_on_rank_zero(world: World, lock: Path) -> Iterator[None]:
    """Hold the lock on rank 0 for the whole group, unless the parent process already holds it.

    Raises:
        RunError: another process holds the lock. torchrun then ends the other ranks.
    """
    if launched_by_claris() or not world.is_main:
        yield
        return
    with hold_lock(lock):
        yield


def broadcast_buffers(world: World, model: torch.nn.Module) -> None:
    """Broadcast the running statistics of rank 0, so that all ranks predict with the network that is saved."""
    if world.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def max_over_ranks(world: World, code: int) -> int:
    """Return the maximum of the codes of all ranks, on every rank. Also serves as a barrier."""
    if world.world_size == 1:
        return code
    value = torch.tensor([code])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def broadcast_from_rank_zero(world: World, value: _Value) -> _Value:
    """Return the value of rank 0, on every rank."""
    if world.world_size == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def first_nonempty_text(world: World, text: str) -> str:
    """Return the first non-empty text in the order of ranks, on every rank."""
    if world.world_size == 1:
        return text
    texts = [""] * world.world_size
    dist.all_gather_object(texts, text)
    return next(filter(None, texts), "")


def gather_rows(world: World, rows: torch.Tensor, values: torch.Tensor, total: int) -> torch.Tensor:
    """Return the values of all ranks in the order of their rows, float32 [total], on every rank.

    Args:
        rows: int64 [n], row index of each value of this rank, in 0..total-1.
        values: float32 [n].
        total: number of rows over all ranks.
    Raises:
        TrainingError: a row was filled twice or not at all. This is a bug.
    """
    local = (rows.numpy(), values.numpy())
    parts = [local] * world.world_size
    if world.world_size > 1:
        dist.all_gather_object(parts, local)
    counts = torch.zeros(total, dtype=torch.int64)
    result = torch.empty(total, dtype=torch.float32)
    for part_rows, part_values in parts:
        index = torch.from_numpy(part_rows)
        counts.index_add_(0, index, torch.ones_like(index))
        result[index] = torch.from_numpy(part_values)
    if not bool((counts == 1).all()):
        wrong = int((counts != 1).sum())
        raise TrainingError(f"{wrong} of {total} rows were not predicted exactly once", "", "Please report this")
    return result


def _launch_ranks(nproc: int, module: str, *arguments: str) -> None:
    """Run a module in `nproc` processes under torchrun and wait until they end.

    Signal handlers, environment variables and log levels are restored afterwards.

    Raises:
        ClarisError: a process failed. Has the message and exit code of that process; torchrun ends the others.
        Stopped: a signal stopped the launcher.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        local_addr="127.0.0.1",  # the host name may not resolve
    )
    with restore_signals(), _launcher_environment():
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except ChildFailedError as failed:
            raise _explain_failed_ranks(failed.failures, nproc) from failed
        except SignalException as stopped:  # torchrun forwarded the signal; the ranks have saved and exited
            found = f"stopped by {platforms.signal_name(stopped.sigval)}"
            raise Stopped(found, "", "Run the same command to resume") from stopped


@contextlib.contextmanager
def _launcher_environment() -> Iterator[None]:
    """Set one thread per rank and the parent's process id in the environment, and silence torchrun."""
    logger, environment = logging.getLogger("torch.distributed"), dict(os.environ)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[_LAUNCHER_PID_VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in set(os.environ) - set(environment):  # torchrun adds variables
            del os.environ[name]


def _write_error_for_parent(error: ClarisError) -> bool:
    """Write the error for the parent process. Return False if `_launch_ranks` did not start this process."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not launched_by_claris() or not path:
        return False
    parts = {"found": error.found, "expected": error.expected, "hint": error.hint}
    content = {"type": type(error).__name__, **parts, "code": error.exit_code}
    # torchrun reads the keys message and timestamp.
    Path(path).write_text(json.dumps({"message": json.dumps(content), "timestamp": int(time.time())}), "utf-8")
    return True


def _explain_failed_ranks(failures: dict[int, ProcessFailure], nproc: int) -> ClarisError:
    """Return the first error that a rank reported, or else an error that says how the first rank died."""
    for failure in sorted(failures.values(), key=lambda failure: failure.timestamp):
        try:
            report = json.loads(failure.message)
            error_type = getattr(errors, report["type"], ClarisError)
            error: ClarisError = error_type(report["found"], report["expected"], report["hint"])
            error.exit_code = report["code"]
            return error
        except (TypeError, ValueError, KeyError):
            continue  # this rank died without a message, or because it lost a peer
    # A killed rank comes before ranks that lost a peer, and before ranks that torchrun ended.
    rank, failure = min(
        failures.items(), key=lambda item: (item[1].exitcode in (1, -signal.SIGTERM), item[1].timestamp)
    )
    hint = "Run the same command to resume from the last checkpoint"
    if failure.exitcode >= 0:
        return TrainingError(f"process {rank} of {nproc} ended with exit code {failure.exitcode}", "", hint)
    name = platforms.signal_name(-failure.exitcode)
    reason = "the usual reason is too little memory" if name == "SIGKILL" else ""
    return TrainingError(f"process {rank} of {nproc} was killed by {name}", reason, hint)
