"""A fold's full training state on disk, with the generation before as fallback.

A checkpoint file is a torch archive followed by the SHA-256 of it, so one rename puts both in
place and a cut or flipped file is noticed before anything is read from it.
"""

from __future__ import annotations

import hashlib
import io
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
    """Where the generation before lies."""
    return path.with_name(path.name + ".previous")


def _serialize(state: dict[str, Any]) -> memoryview:
    """The state as a torch archive."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getbuffer()


def _write_checkpoint(path: Path, content: memoryview) -> None:
    """Put an archive with its SHA-256 in place, and keep the generation before."""
    with replace_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
        if path.exists():
            with replace_file(_previous_path(path)) as older:
                older.unlink()
                platforms.link_or_copy(path, older)


class _CheckpointWriter:
    """Saves states from a thread, one at a time, while training goes on.

    The state is turned into bytes before `save` returns, so that what is written is of that very
    step; hashing, writing and syncing happen beside the next steps. Leaving the block waits for
    the last one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Begin to save the state, once the one before is on disk.

        Raises:
            DiskError: the one before could not be written.
        """
        content = _serialize(state)
        self.wait()
        self.pending = self.pool.submit(_write_checkpoint, self.path, content)

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            DiskError: it could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> _CheckpointWriter:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the last state, on failure too."""
        self.pool.shutdown(wait=True)
        if error[0] is None:
            self.wait()


def _load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest whole state, on the CPU; None when there is none at all.

    Raises:
        RunError: there are files, and none of them is whole.
        DiskError: one is there and cannot be read.
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
                raise ValueError("the SHA-256 does not fit")
            state = dict(torch.load(io.BytesIO(body), map_location="cpu", weights_only=True))
        except Exception:  # torch's reader raises all kinds on files that it did not write
            faults.append(candidate.name)
            continue
        if faults:
            log_info(f"{path}: damaged or cut off; going on from the checkpoint before it")
        return state
    if faults:
        found = f"{path.parent}: {' and '.join(faults)} damaged or cut off"
        raise RunError(found, "", f"Remove {' and '.join(faults)} there to train this fold from its start")
    return None


def is_whole_checkpoint(path: Path) -> bool:
    """Return True if the file is there and its SHA-256 fits."""
    content = path.read_bytes() if path.is_file() else b""
    return (
        len(content) > _DIGEST_BYTES and hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]
    )
