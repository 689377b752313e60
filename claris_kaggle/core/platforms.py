"""Differences between Linux, macOS and Windows. Only this module asks for the operating system.

Branches on `sys.platform` let mypy check each of the three systems. `hasattr` is used for a function that only some
builds of a system have.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO

_WINDOWS = sys.platform == "win32"
# The user's home folder, as written in the documentation of this system.
HOME = "%USERPROFILE%" if _WINDOWS else "~"
# Signals that ask a process to stop: SIGINT (Ctrl-C), SIGTERM (schedulers), and Ctrl-Break on Windows.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name))
# The Windows builds of torch lack NCCL and the rendezvous of torchrun.
SUPPORTS_DDP = not _WINDOWS
# Shared memory of loader processes on Linux; other systems do not have this folder.
SHARED_MEMORY = Path("/dev/shm")
# Seconds between attempts to replace a file on Windows: virus scanners and indexers close it within a second.
_RETRY_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
# Names that Windows reserves for devices, with any suffix: data written to `nul.csv` is lost.
_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_RESERVED_NAMES |= {f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³"}
_FORBIDDEN_CHARACTERS = set('<>:"|?*') | {chr(code) for code in range(32)}
# Longer paths need a Windows setting that is off by default.
_WINDOWS_MAX_PATH = 259


# --- files


def sync_file(stream: IO[bytes]) -> None:
    """Flush the content of a file that is open for writing to disk, so that it survives a power failure."""
    stream.flush()
    if sys.platform == "darwin":
        import fcntl

        # On macOS, fsync leaves the content in the drive's cache. Network file systems do not support F_FULLFSYNC.
        try:
            fcntl.fcntl(stream.fileno(), fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush renames in the folder to disk. Does nothing on Windows, where folders cannot be opened."""
    if _WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(stream: IO[bytes], size: int) -> None:
    """Reserve disk space for the first `size` bytes of the file, on Linux only.

    On other systems a full disk is an error of the first write that does not fit.

    Raises:
        OSError: no space left on the disk.
    """
    if sys.platform == "linux" and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def write_at(stream: io.FileIO, offset: int, content: memoryview) -> None:
    """Write all bytes of the content to an unbuffered file, starting at the offset.

    Raises:
        OSError: the disk is full, or the write failed.
    """
    stream.seek(offset)
    content = content.cast("B")
    while content:
        written = stream.write(content)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        content = content[written:]


def replace(source: Path, target: Path) -> None:
    """Rename the file to `target` and replace an existing file of that name.

    Windows refuses this while another process has one of the two files open. Retries for about 1.5 seconds.

    Raises:
        OSError: the file cannot be replaced.
    """
    _retry_while_open(lambda: source.replace(target))


def move_folder(source: Path, target: Path) -> None:
    """Rename the folder to `target`, which must not exist or must be an empty folder.

    Raises:
        OSError: `target` exists and is not an empty folder, or the folder cannot be moved.
    """
    if _WINDOWS and target.is_dir():
        target.rmdir()  # a rename replaces an empty folder on other systems
    _retry_while_open(lambda: source.rename(target))


def _retry_while_open(act: Callable[[], object]) -> None:
    """Call `act`; on Windows, retry after each pause while another process has the file open."""
    for pause in _RETRY_PAUSES if _WINDOWS else ():
        try:
            act()
            return
        except PermissionError:
            time.sleep(pause)
    act()


def _is_open_elsewhere(error: OSError) -> bool:
    """Return True if Windows reported that another process has the file open (sharing or lock violation)."""
    return getattr(error, "winerror", None) in (32, 33)


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to the file, or copy it if the file system has no hard links.

    Raises:
        OSError: the target exists, or neither is possible.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


# --- names


def _explain_refused_name(path: Path) -> str:
    """Return the reason why this system does not allow the path; empty if it is allowed."""
    if not _WINDOWS:
        return ""
    return _explain_bad_name(path.parts[1:] if path.anchor else path.parts) or (
        f"{len(str(path.absolute()))} characters, which is too long for Windows"
        if len(str(path.absolute())) > _WINDOWS_MAX_PATH
        else ""
    )


def _explain_bad_name(parts: Iterable[str]) -> str:
    """Return the reason why Windows does not allow a path of these parts; empty if it is allowed.

    >>> _explain_bad_name(["runs", "nul.csv"]), _explain_bad_name(["a:b"]), _explain_bad_name(["first", "oof.csv"])
    ("'nul.csv' is a reserved name on Windows", "'a:b' contains a character that Windows does not allow", '')
    """
    for part in parts:
        if part in ("", ".", ".."):
            continue
        if part.split(".")[0].rstrip(" ").upper() in _RESERVED_NAMES:
            return f"{part!r} is a reserved name on Windows"
        if _FORBIDDEN_CHARACTERS & set(part):
            return f"{part!r} contains a character that Windows does not allow"
        if part[-1] in " .":
            return f"{part!r} ends in a space or dot, which Windows drops"
    return ""


def is_safe_name(name: str) -> bool:
    """Return True if a file name from an archive or a server stays inside its destination folder.

    Rejects absolute names, `..`, backslashes and, on Windows, names such as `C:name` or a device.

    >>> [is_safe_name(name) for name in ("run/oof.csv", "../oof.csv", "/oof.csv", "a\\\\b", "")]
    [True, False, False, False, False]
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        return False
    return not (_WINDOWS and _explain_bad_name(path.parts))


# --- processes


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number if this system has no name for it.

    >>> signal_name(15), signal_name(1234)
    ('SIGTERM', 'signal 1234')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_alive(number: int) -> bool:
    """Return True if a process with this id exists."""
    if sys.platform == "win32":
        return _is_alive_on_windows(number)  # os.kill(number, 0) would send Ctrl-C there
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # a process of another user
    return True


if sys.platform == "win32":
    import ctypes

    def _is_alive_on_windows(number: int) -> bool:
        """Return True if the process can be opened and has not ended."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        synchronize, access_denied, timed_out = 0x00100000, 5, 0x102
        handle = kernel.OpenProcess(synchronize, False, number)
        if not handle:
            return ctypes.get_last_error() == access_denied  # a process of another user
        try:
            return bool(kernel.WaitForSingleObject(ctypes.c_void_p(handle), 0) == timed_out)
        finally:
            kernel.CloseHandle(ctypes.c_void_p(handle))


def _after_fork_in_child(act: Callable[[], None]) -> None:
    """Call `act` in every process forked from this one. Does nothing on Windows, which has no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


# --- the machine and its terminals


def total_memory() -> int | None:
    """Return the memory of this machine in bytes; None if the system does not report it."""
    if sys.platform == "win32":
        return _total_memory_of_windows()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        """The MEMORYSTATUSEX structure of the Windows API: two 32-bit numbers, then seven 64-bit numbers."""

        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("sizes", ctypes.c_uint64 * 7)]

    def _total_memory_of_windows() -> int | None:
        """Return the total physical memory from GlobalMemoryStatusEx in bytes; None if the call fails."""
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        succeeded = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.sizes[0]) if succeeded else None


def escape_unprintable_output(*streams: object) -> None:
    r"""Make the streams write characters outside their encoding as \xNN or \uNNNN instead of raising an error.

    A Windows console or pipe may use cp1252, which has no Greek, Polish or Japanese letters.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
