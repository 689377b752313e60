"""Work on many files by joblib, a chunk at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import TrainingError

_ChunkResult = TypeVar("_ChunkResult")
_FILES_PER_CHUNK = 512
# With fewer files than this, one process is done before others have started.
_MANY_FILES = 20_000


def _map_chunks(
    work: Callable[[int, Sequence[str]], _ChunkResult], names: Sequence[str], jobs: int, progress: Progress
) -> Iterator[_ChunkResult]:
    """`work(start, part)` for each part of the names, in their order.

    Processes, not threads: each file is a few microseconds of many calls, and threads spend more
    on handing Python's lock to each other than on the files.

    Args:
        work: a function of a module, or a partial of one, as it is sent to other processes.
        jobs: processes; 0 is one, or one for each core where there are many names.
    Raises:
        TrainingError: the system killed a process.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = jobs or (os.cpu_count() or 1 if len(names) >= _MANY_FILES else 1)
    parts = [(start, names[start : start + _FILES_PER_CHUNK]) for start in range(0, len(names), _FILES_PER_CHUNK)]
    parallel = Parallel(n_jobs=jobs, return_as="generator")
    try:
        for (_, part), result in zip(parts, parallel(delayed(work)(*part) for part in parts), strict=True):
            progress.update(len(part))
            yield result
    except TerminatedWorkerError as error:
        found = f"{progress.name}: the system killed a worker process"
        hint = "Out of memory is the usual reason: run the same command again with --jobs 1"
        raise TrainingError(found, "", hint) from error
