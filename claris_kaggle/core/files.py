"""Atomic writes, SHA-256, JSON, and the lock of a folder.

The package writes files only through this module: write a temporary file in the same folder, fsync, rename, fsync of
the folder. A crash at any point leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claris_kaggle.core import platforms
from claris_kaggle.core.errors import ClarisError, DataError, DiskError, RunError, first_line

if TYPE_CHECKING:
    from filelock import BaseFileLock


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
_LOCK_ATTEMPTS = 100  # each fails only if another process removed the lock in that moment
_HELD_LOCKS: set[BaseFileLock] = set()  # locks held by this process


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Convert an OSError about this path to a DiskError that says what to do.

    Raises:
        DiskError: no space, no permission, folder not found, or any other OSError.
    """
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


def explain_os_error(error: OSError, path: object) -> DiskError:
    """Return a DiskError that says what an OSError about this path means and what to do."""
    refused = platforms._explain_refused_name(Path(str(path)))
    if refused:
        return DiskError(f"{path}: {refused}", "nothing was changed", "Give another name")
    if platforms._is_open_elsewhere(error):
        hint = "Close the file in that program, then run the command again"
        return DiskError(f"{path}: open in another program", "nothing was changed", hint)
    if error.errno in _NO_SPACE:
        hint = "Free some space or choose another disk, then run the command again"
        return DiskError(f"{path}: no space left on the disk", "nothing was changed", hint)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError(
            f"{path}: permission denied or read-only", "", "Change the permissions, or choose another location"
        )
    if error.errno == errno.ENOENT:
        return DiskError(f"{path}: file not found", "", "Check the path")
    if error.errno == errno.EISDIR:
        return DiskError(f"{path}: a folder", "expected a file", "Check the path")
    parent = next((folder for folder in Path(str(path)).parents if os.path.lexists(folder)), None)
    if parent and not is_folder(parent):
        return DiskError(f"{parent}: a file", "expected a folder; nothing was changed", "Give a folder")
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return DiskError(f"{path}: already exists", "nothing was changed", "Give a new folder")
    return DiskError(f"{path}: {error.strerror or error}")


def explain_unexpected_error(error: Exception, hint: str) -> ClarisError:
    """Return the error to report for an exception that this package does not handle elsewhere.

    Args:
        error: the exception. An OSError of the operating system becomes a DiskError.
        hint: what to do about any other exception.
    """
    if isinstance(error, OSError) and error.errno:
        return explain_os_error(error, error.filename or "a file or the output")
    return ClarisError(f"{type(error).__name__}: {first_line(error)}", "", hint)


def is_folder(path: Path) -> bool:
    """Return True if the path is a folder; False also if a parent is not readable or the name is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _temporary_name(path: Path) -> Path:
    """Return an unused name next to `path`; create the folder if needed.

    Raises:
        DiskError: the operating system does not allow the name `path`.
    """
    refused = platforms._explain_refused_name(path)
    if refused:
        raise DiskError(f"{path}: {refused}", "nothing was changed", "Give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")


def _list_missing(path: Path) -> list[Path]:
    """Return the path and its parents that do not exist, innermost first."""
    return [missing for missing in (path, *path.parents) if not os.path.lexists(missing)]


@contextlib.contextmanager
def _remove_new_folders(folder: Path) -> Iterator[None]:
    """After an exception, remove `folder` and its parents if they did not exist before and are empty."""
    created = _list_missing(folder)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # another process has written there
            for path in created:
                path.rmdir()
        raise


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Create a temporary file next to `path`; it replaces `path` when the context ends without an error.

    After an exception the temporary file is removed and `path` is unchanged.

    Raises:
        DiskError: the folder cannot be created or written, or the disk is full.
    """
    with explain_disk_errors(path), _remove_new_folders(path.parent):
        temporary = _temporary_name(path)
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            with temporary.open("r+b") as stream:
                platforms.sync_file(stream)
            platforms.replace(temporary, path)
            platforms._sync_folder(path.parent)
        finally:
            with contextlib.suppress(PermissionError):  # on Windows, while a virus scanner has it open
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def create_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder next to `path`; it is renamed to `path` when the context ends without an error.

    After an exception the temporary folder is removed. Write its files with this module, so that they are on disk
    before the rename. Symbolic links are followed.

    Raises:
        DiskError: `path` exists and is not empty, or is the current folder (a shell there would keep the old, empty
            folder); or the folder cannot be created or written, or the disk is full.
    """
    with explain_disk_errors(path):
        path = path.resolve()
        if path.exists() and path.samefile(os.curdir):
            raise DiskError(f"{path}: the current folder", "nothing was changed", "Give a new folder")
        with _remove_new_folders(path.parent):
            temporary = _temporary_name(path)
            try:
                temporary.mkdir()
                yield temporary
                platforms._sync_folder(temporary)
                platforms.move_folder(temporary, path)
                platforms._sync_folder(path.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write the content atomically; see `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write the text atomically, as UTF-8 with unchanged newlines."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write the object atomically as indented JSON; NaN and infinite values raise ValueError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file.

    Raises:
        DiskError: the file does not exist or is not readable.
        DataError: the file is not a complete JSON object.
    """
    with explain_disk_errors(path):
        content = path.read_bytes()
    try:
        # NaN and Infinity are not JSON, but some tools write them. Keep them as text, so that they can be rewritten.
        value = json.loads(content, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a complete JSON file ({error})", "", "Create it again, or remove it") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}", "expected a JSON object", "Create it again")
    return value


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file as 64 hex digits."""
    with explain_disk_errors(path), path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def hold_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file within the context; the operating system releases it when this process dies.

    A second file next to it names the holder, because a locked file cannot be read on Windows. If the context ends with
    an error, a lock file that it created is removed, and so are the folders that it created if they are empty.

    Args:
        path: the lock file; its folder is created if needed.
        wait: True waits for the lock instead of raising an error.
    Raises:
        RunError: another process holds the lock; the message names it and the time it began.
        DiskError: the lock file cannot be created.
    """
    holder = path.with_name(f"{path.name}.holder")
    created = _list_missing(path)
    failed = True
    lock = _acquire_lock(path, holder, wait=wait)
    _HELD_LOCKS.add(lock)
    try:
        with explain_disk_errors(holder):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", "utf-8")
        yield
        failed = False
    finally:
        with contextlib.suppress(OSError):  # on Windows, while another process has it open
            holder.unlink()
        if failed:
            _remove_created(created)  # while the lock is held, so that no other process takes a removed file
        _HELD_LOCKS.discard(lock)
        lock.release()
        if failed:
            _remove_created(created)  # Windows does not remove an open file


def _acquire_lock(path: Path, holder: Path, *, wait: bool) -> BaseFileLock:
    """Return the held lock; see `hold_lock`."""
    from filelock import FileLock, Timeout  # late import: takes 50 ms, and `claris --help` needs no lock

    lock = FileLock(path, thread_local=False)
    with explain_disk_errors(path):
        for attempt in range(_LOCK_ATTEMPTS):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=wait)
            except Timeout:
                found = f"{path.parent}: in use by {_read_holder(holder)}"
                hint = "Wait until it ends, or use another folder"
                raise RunError(found, "only one process may write at a time", hint) from None
            except FileNotFoundError:  # the previous holder failed and removed the folder
                if attempt == _LOCK_ATTEMPTS - 1:
                    raise
                continue
            if path.exists():
                break
            lock.release()  # the previous holder failed and removed the file
    return lock


def _remove_created(created: Sequence[Path]) -> None:
    """Remove a lock file and the folders that were created for it, innermost first, if they hold nothing else."""
    with contextlib.suppress(OSError):  # a folder is not empty
        for path in created:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def _read_holder(path: Path) -> str:
    """Return the holder of a lock from its file; "another process" if the file is not written yet."""
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace").strip() or "another process"
    return "another process"


def _close_inherited_locks() -> None:
    """Close the parent's locks in a forked process, which would keep them when the parent is killed.

    filelock 3.30 and later does this itself; the Kaggle image has an older version.
    """
    while _HELD_LOCKS:
        context = _HELD_LOCKS.pop()._context
        if context.lock_file_fd is not None:
            os.close(context.lock_file_fd)
            context.lock_file_fd = None


platforms._after_fork_in_child(_close_inherited_locks)
