"""Test data loading processes: as many as fit in shared memory, and a clear message when one is killed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from claris_kaggle.core.errors import TrainingError
from claris_kaggle.runtime import loading


def test_shared_memory_that_is_small_is_left_to_fewer_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    if not loading.SHARED_MEMORY.is_dir():
        pytest.skip("no shared memory folder on this system")
    block = 512 * 27_648
    for free, processes, wanted, fitting in (
        (64 << 20, 1, 4, 1),
        (64 << 20, 2, 4, 0),
        (8 << 30, 2, 4, 4),
        (0, 1, 0, 0),
    ):
        monkeypatch.setattr(loading.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert loading.limit_workers(wanted, block, processes) == fitting


def test_a_loader_process_that_is_killed_is_one_clear_line() -> None:
    def dying() -> Iterator[int]:
        yield 1
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(TrainingError, match=r"a data loading process was killed.*fewer --workers"):
        list(loading._explain_killed_workers(dying()))


def test_all_copies_to_a_gpu_use_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch caches memory for each stream, so a new stream for each epoch would cost memory."""
    loading._copy_stream.cache_clear()
    monkeypatch.setattr(loading.torch.cuda, "Stream", lambda device: [device])
    first, second = (torch.device("cuda", number) for number in range(2))
    assert loading._copy_stream(first) is loading._copy_stream(first) is not loading._copy_stream(second)
    loading._copy_stream.cache_clear()
