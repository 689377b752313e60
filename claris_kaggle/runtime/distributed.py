"""Rank, world size, the process group, and rows gathered so that each comes back once.

`torchrun` starts the processes, ours by `_launch_ranks` or the user's own on several machines; rank and
world size come from its environment alone. One process needs no group and takes the same paths.
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
from typing import Any

import torch
import torch.distributed as dist

from claris_kaggle.core import errors, platforms
from claris_kaggle.core.errors import ClarisError, Stopped, TrainingError, UsageError
from claris_kaggle.core.files import hold_lock
from claris_kaggle.core.time_limit import exit_with_parent, restore_signals

_LAUNCHED = "CLARIS_LAUNCHED"  # the number of the process that launched this one
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: 0..world_size-1 over all machines.
        local_rank: 0.. on this machine.
        world_size: processes in all.
        local_size: processes on this machine.
        device: the GPU of the local rank, or the CPU.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def was_launched() -> bool:
    """Whether `_launch_ranks` started this process, so that the parent has prepared and locked everything."""
    return _LAUNCHED in os.environ


def choose_nproc(asked: int) -> int:
    """Return the number of processes to train or predict with: as asked, or with 0 one for each GPU, else one.

    Raises:
        UsageError: several are asked for, and this system's torch has no torchrun.
    """
    if asked > 1 and not platforms.SEVERAL_PROCESSES:
        raise UsageError(f"--nproc is {asked}", "several processes need Linux or macOS", "Give --nproc 1")
    return asked or (max(1, torch.cuda.device_count()) if platforms.SEVERAL_PROCESSES else 1)


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """This process's place; with more than one process, inside a process group.

    A process that fails does not end the group: NCCL would wait in that for peers which wait for this one.
    """
    rank, local, size = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if was_launched():
        exit_with_parent(int(os.environ[_LAUNCHED]))  # which holds the lock
    if size <= 1:
        yield World(0, 0, 1, device)
        return
    # NCCL refuses two processes on one card, gloo does not.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    own_card = cuda and here <= torch.cuda.device_count()
    with _stdout_to_stderr():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_card else "gloo", timeout=_TIMEOUT)
    yield World(rank, local, size, device, here)
    dist.destroy_process_group()


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep stdout for results: up to torch 2.10, gloo's C++ writes there who is connected."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def hold_for_all(world: World, lock: Path) -> Iterator[None]:
    """Hold the lock from rank 0 for the whole group, unless the process that launched it does.

    Raises:
        RunError: another process holds it; torchrun then ends the other ranks.
    """
    if was_launched() or not world.is_main:
        yield
        return
    with hold_lock(lock):
        yield


def share_buffers(world: World, model: torch.nn.Module) -> None:
    """Give all ranks rank 0's running statistics, so that all predict with the network that is saved."""
    if world.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def any_rank(world: World, code: int) -> int:
    """The largest of the codes that the ranks bring; every rank gets the same answer."""
    if world.world_size == 1:
        return code
    value = torch.tensor([code])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def from_main(world: World, value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world.world_size == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def first_text(world: World, text: str) -> str:
    """The first text that is not empty, by rank; every rank gets the same answer."""
    if world.world_size == 1:
        return text
    texts: list[Any] = [None] * world.world_size
    dist.all_gather_object(texts, text)
    return next(filter(None, texts), "")


def gather_rows(world: World, places: torch.Tensor, values: torch.Tensor, total: int) -> torch.Tensor:
    """All values in their places, float32 [total], on every rank.

    Args:
        places: int64 [n], where this rank's values belong.
        values: float32 [n].
        total: rows over all ranks.
    Raises:
        TrainingError: a place was filled twice or not at all, which must never be.
    """
    parts: list[Any] = [(places.numpy(), values.numpy())]
    if world.world_size > 1:
        parts = [None] * world.world_size
        dist.all_gather_object(parts, (places.numpy(), values.numpy()))
    filled = torch.zeros(total, dtype=torch.int64)
    result = torch.empty(total, dtype=torch.float32)
    for where, what in parts:
        index = torch.from_numpy(where)
        filled.index_add_(0, index, torch.ones_like(index))
        result[index] = torch.from_numpy(what)
    if not bool((filled == 1).all()):
        wrong = int((filled != 1).sum())
        raise TrainingError(f"{wrong} of {total} rows did not come back exactly once", "", "Please report this")
    return result


def _launch_ranks(nproc: int, module: str, *arguments: str) -> None:
    """Run a module in `nproc` processes under torchrun, to their end.

    Handlers of signals, environment and log levels are restored afterwards.

    Raises:
        ClarisError: a process failed, with the message and exit code that it left; torchrun ends the others.
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
        local_addr="127.0.0.1",  # the machine's own name need not lead anywhere
    )
    with restore_signals(), _launcher_environment():
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except ChildFailedError as failed:
            raise _explain_failed_ranks(failed.failures, nproc) from failed
        except SignalException as stopped:  # torchrun has passed it on, and the ranks have saved and ended
            found = f"stopped by {platforms.signal_name(stopped.sigval)}"
            raise Stopped(found, "", "The same command goes on from there") from stopped


@contextlib.contextmanager
def _launcher_environment() -> Iterator[None]:
    """Give the ranks one thread each and the number of this process, and silence torchrun, within the context."""
    logger, kept = logging.getLogger("torch.distributed"), dict(os.environ)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[_LAUNCHED] = str(os.getpid())
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in set(os.environ) - set(kept):  # torchrun sets some of its own
            del os.environ[name]


def _leave_error(error: ClarisError) -> bool:
    """Hand the error to the process that launched this one; False when none did."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not was_launched() or not path:
        return False
    parts = {"found": error.found, "expected": error.expected, "hint": error.hint}
    content = {"type": type(error).__name__, **parts, "code": error.exit_code}
    # The keys that torchrun itself looks for are message and timestamp.
    Path(path).write_text(json.dumps({"message": json.dumps(content), "timestamp": int(time.time())}), "utf-8")
    return True


def _explain_failed_ranks(failures: dict[int, Any], nproc: int) -> ClarisError:
    """The first error that a process left, else how the first of them died."""
    for failure in sorted(failures.values(), key=lambda one: one.timestamp):
        try:
            left = json.loads(failure.message)
            error_type = getattr(errors, left["type"], ClarisError)
            error: ClarisError = error_type(left["found"], left["expected"], left["hint"])
            error.exit_code = left["code"]
            return error
        except (TypeError, ValueError, KeyError):
            continue  # this one died without a word, or because another had gone
    # Who was killed comes before who lost a peer by it, and before those that torchrun ended.
    rank, failure = min(
        failures.items(), key=lambda item: (item[1].exitcode in (1, -signal.SIGTERM), item[1].timestamp)
    )
    hint = "Run the same command to go on from the last checkpoint"
    if failure.exitcode >= 0:
        return TrainingError(f"process {rank} of {nproc} ended with exit code {failure.exitcode}", "", hint)
    name = platforms.signal_name(-failure.exitcode)
    reason = "out of memory is the usual reason" if name == "SIGKILL" else ""
    return TrainingError(f"process {rank} of {nproc} was killed by {name}", reason, hint)
