"""Describe the machine of a session: versions, mounts, processors, memory, disk and network."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from claris_kaggle.core import platforms

_LISTED_DEPTH, _MAX_FOLDERS, _PATCH_FOLDERS = 4, 60, ("train", "test")
_CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True, kw_only=True)
class _Disk:
    """A folder, and the total and free space of its disk in GB."""

    path: str
    total_gb: float
    free_gb: float


@dataclass(frozen=True, kw_only=True)
class _Mounts:
    """The folder of the inputs, and the folders below it with their numbers of files."""

    root: str
    folders: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _ConnectionTest:
    """The result of a connection test."""

    host: str
    answered: bool


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """The machine of a session.

    Attributes:
        packages: installed versions, by the names of the packages in lower case.
        disk: of the folders `working` and `temporary`.
        variables: names of Kaggle's environment variables.
        reached: None without a connection test.
        data: folder of the competition below the inputs, or why there is none.
    """

    python: str
    system: str
    packages: Mapping[str, str]
    cpus: int
    memory_gb: float
    gpus: int
    disk: Mapping[str, _Disk]
    inputs: _Mounts
    variables: Sequence[str]
    reached: _ConnectionTest | None
    data: str

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the machine that a session has described."""
        parts = {
            "disk": {name: _Disk(**disk) for name, disk in stored["disk"].items()},
            "inputs": _Mounts(**stored["inputs"]),
            "reached": _ConnectionTest(**stored["reached"]) if stored["reached"] else None,
        }
        return cls(**{**stored, **parts})

    def to_json(self) -> dict[str, object]:
        """Return the description as plain values."""
        return {**asdict(self), "reached": asdict(self.reached) if self.reached else {}}


def _describe_machine(inputs: Path, working: Path, temporary: Path, data: str, test_address: str) -> _Machine:
    """Return a description of this machine, without user names.

    Args:
        inputs: folder in which Kaggle mounts the inputs.
        working: folder of the output.
        temporary: folder of the packed patches.
        data: folder of the competition below the inputs, or why there is none.
        test_address: host and port of a connection test, such as "huggingface.co:443"; empty for no test.
    """
    return _Machine(
        python=platform.python_version(),
        system=platform.platform(),
        packages=_installed_packages(),
        cpus=os.cpu_count() or 0,
        memory_gb=round((platforms.total_memory() or 0) / 1e9, 1),
        gpus=_gpu_count(),
        disk={name: _describe_disk(path) for name, path in (("working", working), ("temporary", temporary))},
        inputs=_Mounts(root=str(inputs), folders=_list_folders(inputs)),
        variables=sorted(name for name in os.environ if name.startswith("KAGGLE_")),
        reached=_ConnectionTest(host=test_address, answered=_can_connect(test_address)) if test_address else None,
        data=data,
    )


def _installed_packages() -> dict[str, str]:
    """Return the version of every installed package, by its name in lower case."""
    found = {str(one.metadata["Name"] or "").lower(): one.version for one in importlib.metadata.distributions()}
    return {name: version for name, version in sorted(found.items()) if name}


def _gpu_count() -> int:
    """Return the number of NVIDIA devices of the system. Importing torch would take seconds."""
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) if sys.platform == "linux" else 0


def _describe_disk(path: Path) -> _Disk:
    """Return the folder with its total and free disk space, in GB."""
    usage = shutil.disk_usage(path)
    return _Disk(path=str(path), total_gb=round(usage.total / 1e9, 1), free_gb=round(usage.free / 1e9, 1))


def _list_folders(root: Path) -> list[str]:
    """Return the folders below the root with their numbers of files, down to a few levels. Skips folders of patches."""
    found: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        # Folders of patches take long to list, and contain nothing else.
        folders[:] = sorted(name for name in folders if name not in _PATCH_FOLDERS) if depth < _LISTED_DEPTH else []
        if depth:
            found.append(f"{Path(folder).relative_to(root).as_posix()} ({len(files)} files)")
        if len(found) >= _MAX_FOLDERS:
            break
    return found


def _can_connect(address: str) -> bool:
    """Return True if a connection to the host and port succeeds."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT):
            return True
    except (OSError, ValueError):
        return False
