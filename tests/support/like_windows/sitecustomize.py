"""Remove what Windows lacks from every Python process that has this folder on PYTHONPATH.

Modules of POSIX alone cannot be imported, functions and signals of POSIX alone are gone, and files behave as on
Windows where that can be imitated. The standard library of this system itself stands on some of these: it is loaded
first, and what it needs while it runs is taken away from claris_kaggle alone.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - imports fcntl
import errno
import fcntl
import multiprocessing.pool  # noqa: F401
import os
import shutil
import signal
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import types
from typing import Any

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
GONE = {
    "os": (
        "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "fork", "forkpty", "getloadavg", "killpg", "lchown", "mkfifo", "nice",
        "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev",
        "sched_getaffinity", "sched_setaffinity", "sendfile", "setpgid", "setsid", "sync", "sysconf",
    ),
    "signal": ("SIGALRM", "SIGHUP", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask"),
}  # fmt: skip
# What libraries may go on using, as they bring their own code for Windows.
GONE_FOR_US = {
    "os": (
        "O_NONBLOCK", "WNOHANG", "chown", "fchmod", "geteuid", "getgid", "getpgid", "getuid", "register_at_fork",
        "statvfs", "uname", "wait",
    ),
    "signal": ("SIGCHLD", "SIGKILL", "sigwait"),
}  # fmt: skip
FUNCTIONS = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace, "open": os.open}
MODE = fcntl.F_GETFL
look_up = fcntl.fcntl
refused: set[str] = set()


def asked_by_us(depth: int = 3) -> bool:
    """Return True if claris_kaggle is among the nearest callers."""
    frame = sys._getframe(2)
    for _ in range(depth):
        if frame.f_globals.get("__name__", "").startswith("claris_kaggle"):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def fsync(descriptor: int) -> None:
    """Refuse a descriptor that is open for reading alone."""
    if look_up(descriptor, MODE) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FUNCTIONS["fsync"](descriptor)


def rename(source: Any, target: Any, **more: Any) -> None:
    """Refuse a target that is there."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    FUNCTIONS["rename"](source, target, **more)


def replace(source: Any, target: Any, **more: Any) -> None:
    """Refuse each target once, as while a virus scanner reads it."""
    if asked_by_us() and os.fspath(target) not in refused:
        refused.add(os.fspath(target))
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(target))
    FUNCTIONS["replace"](source, target, **more)


def open_file(path: Any, *more: Any, **named: Any) -> int:
    """Refuse a folder."""
    if asked_by_us() and os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return int(FUNCTIONS["open"](path, *more, **named))


def take_away() -> None:
    """Leave what Windows has."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, GONE["os"]), (signal, GONE["signal"])):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.fsync, os.rename, os.replace, os.open = fsync, rename, replace, open_file  # type: ignore[assignment]
    # rmtree opens folders, copyfile sends between descriptors: other ways of the standard library, as on Windows
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]


def narrow_imports() -> None:
    """Give claris_kaggle an `os` and a `signal` without the names that the standard library keeps here."""
    import builtins

    narrow = {}
    for module in (os, signal):
        narrow[module.__name__] = types.ModuleType(module.__name__)
        kept = {name: value for name, value in vars(module).items() if name not in GONE_FOR_US[module.__name__]}
        vars(narrow[module.__name__]).update(kept)
    plain = builtins.__import__

    def find(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        ours = bool(globals) and str(globals.get("__name__", "")).startswith("claris_kaggle")
        return narrow[name] if ours and name in narrow else plain(name, globals, locals, fromlist, level)

    builtins.__import__ = find


take_away()
narrow_imports()

from claris_kaggle.core import platforms  # noqa: E402

platforms._WINDOWS, platforms.SUPPORTS_DDP, platforms.HOME = True, False, "%USERPROFILE%"
