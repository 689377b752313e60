"""Parallel processing of many files in chunks, with joblib."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import TrainingError

_ChunkResult = TypeVar("_ChunkResult")
_FILES_PER_CHUNK = 512
# With fewer files, one process finishes before others have started.
_MANY_FILES = 20_000


def _map_chunks(
    function: Callable[[int, Sequence[str]], _ChunkResult], names: Sequence[str], jobs: int, progress: Progress
) -> Iterator[_ChunkResult]:
    """Yield `function(start, part)` for each chunk of the names, in order.

    Uses processes, not threads: a file needs many calls of a few microseconds, so threads would mostly wait for the
    GIL.

    Args:
        function: a function of a module, or a partial of one, because it is pickled.
        names: the names to process.
        jobs: number of processes; 0 uses one, or one per core if there are many names.
        progress: updated after each chunk.
    Raises:
        TrainingError: the system killed a process.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = jobs or (os.cpu_count() or 1 if len(names) >= _MANY_FILES else 1)
    parts = [(start, names[start : start + _FILES_PER_CHUNK]) for start in range(0, len(names), _FILES_PER_CHUNK)]
    parallel = Parallel(n_jobs=jobs, return_as="generator")
    try:
        for (_, part), result in zip(parts, parallel(delayed(function)(*part) for part in parts), strict=True):
            progress.update(len(part))
            yield result
    except TerminatedWorkerError as error:
        found = f"{progress.name}: the system killed a worker process"
        hint = "The usual reason is too little memory: run the command again with --jobs 1"
        raise TrainingError(found, "", hint) from error
