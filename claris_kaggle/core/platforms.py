"""What differs between Linux, macOS and Windows. Other modules call these functions and ask for no system.

A branch on `sys.platform` is one that mypy follows for each of the three systems. Where a function may be absent
on a system that is otherwise alike, `hasattr` decides.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

_WINDOWS = sys.platform == "win32"
# The user's home as this system's manuals write it.
HOME = "%USERPROFILE%" if _WINDOWS else "~"
# Signals that ask a process to stop in order: a terminal's Ctrl-C, a scheduler's end, and Ctrl-Break on Windows.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name))
# torchrun's rendezvous and NCCL are absent from the builds of torch for Windows.
SEVERAL_PROCESSES = not _WINDOWS
# Where loader processes leave what they send; systems without it use files of their own.
SHARED_MEMORY = Path("/dev/shm")
# Pauses before Windows is asked once more to replace a file: a virus scanner or an indexer lets go within a second.
_RETRY_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
# Files that Windows keeps for devices, whatever their ending: writing to `nul.csv` discards all of it.
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_DEVICES |= {f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³"}
_FORBIDDEN = set('<>:"|?*') | {chr(code) for code in range(32)}
# Longer paths need a setting of Windows that is off by default.
_WINDOWS_LONGEST_PATH = 259


# --- files


def sync_file(stream: IO[bytes]) -> None:
    """Make the content of a file that is open for writing last through a power cut."""
    stream.flush()
    if sys.platform == "darwin":
        import fcntl

        # fsync of macOS leaves the content in the drive's cache. Network file systems refuse F_FULLFSYNC.
        try:
            fcntl.fcntl(stream.fileno(), fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a power cut. Windows opens no folders: its journal holds renames."""
    if _WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(stream: IO[bytes], size: int) -> None:
    """Reserve disk space for the first `size` bytes of the file, where the system can.

    Elsewhere a full disk is an error of the first write that does not fit.

    Raises:
        OSError: the disk has no room.
    """
    if sys.platform == "linux" and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def write_at(stream: io.FileIO, offset: int, content: memoryview) -> None:
    """Write all of the content at the offset of an unbuffered file.

    Raises:
        OSError: the disk is full or failed.
    """
    stream.seek(offset)
    content = content.cast("B")
    while content:
        written = stream.write(content)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        content = content[written:]


def replace(source: Path, target: Path) -> None:
    """Give the file the name `target`, in place of any file of that name.

    Windows refuses this while another process has one of the two files open; it is asked again for about a second.

    Raises:
        OSError: it cannot be replaced.
    """
    _retry_while_open(lambda: source.replace(target))


def move_folder(source: Path, target: Path) -> None:
    """Give the folder the name `target`, at which there is nothing or an empty folder.

    Raises:
        OSError: there is something else, or the folder cannot be moved.
    """
    if _WINDOWS and target.is_dir():
        target.rmdir()  # a rename replaces an empty folder on other systems
    _retry_while_open(lambda: source.rename(target))


def _retry_while_open(act: Callable[[], object]) -> None:
    """Act, again after each pause where Windows refuses because the file is open elsewhere."""
    for pause in _RETRY_PAUSES if _WINDOWS else ():
        try:
            act()
            return
        except PermissionError:
            time.sleep(pause)
    act()


def _is_open_elsewhere(error: OSError) -> bool:
    """Return True if Windows refused because another process has the file open (sharing or lock violation)."""
    return getattr(error, "winerror", None) in (32, 33)


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file a second name, or copy it where the file system has no hard links.

    Raises:
        OSError: neither is possible.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


# --- names


def _explain_refused_name(path: Path) -> str:
    """Return why this system takes no file of this path; an empty text where it does."""
    if not _WINDOWS:
        return ""
    return _explain_bad_name(path.parts[1:] if path.anchor else path.parts) or (
        f"{len(str(path.absolute()))} characters, which is too long for Windows"
        if len(str(path.absolute())) > _WINDOWS_LONGEST_PATH
        else ""
    )


def _explain_bad_name(parts: Iterable[str]) -> str:
    """Return why Windows takes no file of a path of these parts; an empty text where it does.

    >>> _explain_bad_name(["runs", "nul.csv"]), _explain_bad_name(["a:b"]), _explain_bad_name(["first", "oof.csv"])
    ("'nul.csv' is a device of Windows", "'a:b' holds a character that Windows does not take", '')
    """
    for part in parts:
        if part in ("", ".", ".."):
            continue
        if part.split(".")[0].rstrip(" ").upper() in _DEVICES:
            return f"{part!r} is a device of Windows"
        if _FORBIDDEN & set(part):
            return f"{part!r} holds a character that Windows does not take"
        if part[-1] in " .":
            return f"{part!r} ends in a space or dot, which Windows drops"
    return ""


def is_inside(name: str) -> bool:
    """Return True if a file of this name, as an archive or a server gives it, lies below the folder it is put into.

    A backslash and, on Windows, `C:name` or a device lead out of the folder as `..` does.

    >>> is_inside("run/oof.csv"), is_inside("../oof.csv"), is_inside("/oof.csv"), is_inside("a\\\\b"), is_inside("")
    (True, False, False, False, False)
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        return False
    return not (_WINDOWS and _explain_bad_name(path.parts))


# --- processes


def signal_name(number: int) -> str:
    """Return the name of a signal; its number where this system has no name for it.

    >>> signal_name(15), signal_name(1234)
    ('SIGTERM', 'signal 1234')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_alive(number: int) -> bool:
    """Return True if there is a process of that number."""
    if sys.platform == "win32":
        return _is_alive_on_windows(number)  # there os.kill(number, 0) would send Ctrl-C
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


if sys.platform == "win32":
    import ctypes

    def _is_alive_on_windows(number: int) -> bool:
        """Return True if the process can be opened for waiting and has not ended."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        synchronize, access_denied, timed_out = 0x00100000, 5, 0x102
        handle = kernel.OpenProcess(synchronize, False, number)
        if not handle:
            return ctypes.get_last_error() == access_denied  # another user's
        try:
            return bool(kernel.WaitForSingleObject(ctypes.c_void_p(handle), 0) == timed_out)
        finally:
            kernel.CloseHandle(ctypes.c_void_p(handle))


def _exit_with_process(number: int, every: float) -> None:
    """End this process at once, from now on, when the process of that number or the parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        # A process whose parent has ended gets a new one; on Windows it keeps the number.
        while os.getppid() == parent and _is_alive(number or parent):
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _after_fork_in_child(act: Callable[[], None]) -> None:
    """Call `act` in every process that is forked from this one. Windows forks none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


# --- the machine and its terminals


def total_memory() -> int | None:
    """Return the bytes of memory of this machine; None where the system does not tell."""
    if sys.platform == "win32":
        return _total_memory_of_windows()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API: two numbers of 32 bits, then seven of 64."""

        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("sizes", ctypes.c_uint64 * 7)]

    def _total_memory_of_windows() -> int | None:
        """Return the first of the sizes that GlobalMemoryStatusEx tells."""
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        told = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.sizes[0]) if told else None


def escape_unprintable_output(*streams: Any) -> None:
    r"""Let the streams write characters that their encoding lacks as \xNN or \uNNNN instead of failing.

    A console or pipe of Windows may be cp1252, which has no Greek, Polish or Japanese letters.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
