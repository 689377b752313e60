"""The full training state of a fold, with the previous checkpoint as fallback.

A checkpoint file is a torch archive followed by its SHA-256. One rename therefore replaces both, and a truncated or
damaged file is detected before anything is read from it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from claris_kaggle.core import platforms
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import RunError
from claris_kaggle.core.files import explain_disk_errors, replace_file

_DIGEST_BYTES = 32


def _previous_path(path: Path) -> Path:
    """Return the path of the previous checkpoint."""
    return path.with_name(path.name + ".previous")


def _serialize(state: Mapping[str, object]) -> memoryview:
    """Return the state as the bytes of a torch archive."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getbuffer()


def _write_checkpoint(path: Path, content: memoryview) -> None:
    """Write an archive with its SHA-256 atomically, and keep the previous checkpoint."""
    with replace_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
        if path.exists():
            with replace_file(_previous_path(path)) as previous:
                previous.unlink()
                platforms.link_or_copy(path, previous)


class _CheckpointWriter:
    """A context manager that saves checkpoints in a thread, one at a time, while training continues.

    The state is serialized before `save` returns, so the file holds the state of that step. Hashing, writing and
    syncing run in parallel with the next steps. Leaving the context waits for the last checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def save(self, state: Mapping[str, object]) -> None:
        """Start to save the state after the previous one is on disk.

        Raises:
            DiskError: the previous state could not be written.
        """
        content = _serialize(state)
        self.wait()
        self.pending = self.pool.submit(_write_checkpoint, self.path, content)

    def wait(self) -> None:
        """Wait until the last state is on disk.

        Raises:
            DiskError: the state could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> _CheckpointWriter:
        """Return the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the last state, also after an exception."""
        self.pool.shutdown(wait=True)
        if error[0] is None:
            self.wait()


def _load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the newest intact state, on the CPU; None if there is no checkpoint.

    Raises:
        RunError: there are checkpoints, and all of them are damaged.
        DiskError: a checkpoint exists and cannot be read.
    """
    faults = []
    for candidate in (path, _previous_path(path)):
        with explain_disk_errors(candidate):
            content = candidate.read_bytes() if candidate.exists() else None
        if content is None:
            continue
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        try:
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("the SHA-256 does not match")
            state = dict(torch.load(io.BytesIO(body), map_location="cpu", weights_only=True))
        except Exception:  # torch's reader raises many exception types on damaged files
            faults.append(candidate.name)
            continue
        if faults:
            log_info(f"{path}: damaged or cut off; resuming from the previous checkpoint")
        return state
    if faults:
        found = f"{path.parent}: {' and '.join(faults)} damaged or cut off"
        raise RunError(found, "", f"Remove {' and '.join(faults)} to train this fold from the start")
    return None


def _has_checkpoint(path: Path) -> bool:
    """Return True if there is a checkpoint or a previous one, damaged or not."""
    return path.exists() or _previous_path(path).exists()


def is_whole_checkpoint(path: Path) -> bool:
    """Return True if the file exists and its SHA-256 matches."""
    content = path.read_bytes() if path.is_file() else b""
    return (
        len(content) > _DIGEST_BYTES and hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]
    )
