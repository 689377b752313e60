"""A fold's full training state on disk, with the generation before as fallback, and finished weights.

A checkpoint file is a torch archive followed by the SHA-256 of it, so one rename puts both in
place and a cut or flipped file is noticed before anything is read from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from claris_kaggle import platforms
from claris_kaggle.console import say
from claris_kaggle.errors import DataError, DiskError, RunError
from claris_kaggle.files import explain_disk_errors, read_json, replacing, sha256_bytes, sha256_file, write_json
from claris_kaggle.model import parse_weights
from claris_kaggle.paths import FoldDir

DIGEST_BYTES = 32


def previous(path: Path) -> Path:
    """Where the generation before lies."""
    return path.with_name(path.name + ".previous")


def serialize(state: dict[str, Any]) -> memoryview:
    """The state as a torch archive."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getbuffer()


def write_checkpoint(path: Path, content: memoryview) -> None:
    """Put an archive with its SHA-256 in place, and keep the generation before."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
        if path.exists():
            with replacing(previous(path)) as older:
                older.unlink()
                platforms.link_or_copy(path, older)


class CheckpointWriter:
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
        content = serialize(state)
        self.wait()
        self.pending = self.pool.submit(write_checkpoint, self.path, content)

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            DiskError: it could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> CheckpointWriter:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the last state, on failure too."""
        self.pool.shutdown(wait=True)
        if error[0] is None:
            self.wait()


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest whole state, on the CPU; None when there is none at all.

    Raises:
        RunError: there are files, and none of them is whole.
        DiskError: one is there and cannot be read.
    """
    faults = []
    for candidate in (path, previous(path)):
        with explain_disk_errors(candidate):
            content = candidate.read_bytes() if candidate.exists() else None
        if content is None:
            continue
        body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        try:
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("the SHA-256 does not fit")
            state = dict(torch.load(io.BytesIO(body), map_location="cpu", weights_only=True))
        except Exception:  # torch's reader raises all kinds on files that it did not write
            faults.append(candidate.name)
            continue
        if faults:
            say(f"{path}: damaged or cut off; going on from the checkpoint before it")
        return state
    if faults:
        found = f"{path.parent}: {' and '.join(faults)} damaged or cut off"
        raise RunError(found, "", f"Remove {' and '.join(faults)} there to train this fold from its start")
    return None


def is_whole_checkpoint(path: Path) -> bool:
    """Return True if the file is there and its SHA-256 fits."""
    content = path.read_bytes() if path.is_file() else b""
    return len(content) > DIGEST_BYTES and hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def save_weights(path: Path, model: nn.Module) -> None:
    """Put the network's weights in place whole, as safetensors."""
    import safetensors.torch

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state, {"format": "pt"})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def finish_fold(fold_dir: FoldDir, facts: dict[str, Any]) -> None:
    """Mark the fold as finished: its weights' SHA-256 and `facts`, in a file written after the weights."""
    write_json(fold_dir.seal, {"weights_sha256": sha256_file(fold_dir.weights), **facts})


def finished_sha256(fold_dir: FoldDir) -> str | None:
    """The SHA-256 of a finished fold's weights, or None while it is not finished or damaged."""
    with contextlib.suppress(DataError, DiskError):
        digest = read_json(fold_dir.seal).get("weights_sha256")
        if isinstance(digest, str) and fold_dir.weights.exists() and sha256_file(fold_dir.weights) == digest:
            return digest
    return None


def load_finished(fold_dir: FoldDir, model: nn.Module) -> str:
    """Put a finished fold's weights into the network; returns their SHA-256.

    Raises:
        RunError: the weights are damaged, or of another network.
    """
    digest = str(read_json(fold_dir.seal).get("weights_sha256"))
    load_sealed(fold_dir.weights, digest, model, f"Remove {fold_dir.seal} and run claris train again")
    return digest


def load_sealed(path: Path, digest: object, model: nn.Module, mend: str) -> None:
    """Put the weights in the file into the network, once its SHA-256 is known to be `digest`.

    Args:
        mend: what to do about other bytes.
    Raises:
        RunError: the weights are damaged, or of another network.
    """
    with explain_disk_errors(path):
        content = path.read_bytes()
    if sha256_bytes(content) != digest:
        raise RunError(f"{path}: not the weights that training finished with", "", mend)
    try:
        model.load_state_dict(parse_weights(content, path))
    except RuntimeError as error:
        raise RunError(f"{path}: of another network", "", "Use the run's own weights") from error
