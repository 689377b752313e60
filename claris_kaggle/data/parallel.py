"""Work on many files by joblib, a chunk at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import TrainingError

T = TypeVar("T")
CHUNK = 512
# With fewer files than this, one process is done before others have started.
MANY = 20_000


def in_chunks(
    work: Callable[[int, Sequence[str]], T], names: Sequence[str], jobs: int, progress: Progress
) -> Iterator[T]:
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

    jobs = jobs or (os.cpu_count() or 1 if len(names) >= MANY else 1)
    parts = [(start, names[start : start + CHUNK]) for start in range(0, len(names), CHUNK)]
    parallel = Parallel(n_jobs=jobs, return_as="generator")
    try:
        for (_, part), result in zip(parts, parallel(delayed(work)(*part) for part in parts), strict=True):
            progress.update(len(part))
            yield result
    except TerminatedWorkerError as error:
        found = f"{progress.name}: the system killed a worker process"
        mend = "Out of memory is the usual reason: run the same command again with --jobs 1"
        raise TrainingError(found, "", mend) from error
