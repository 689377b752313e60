"""Check the installation: one line per check, with a suggested fix for each failure."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from claris_kaggle.core import platforms
from claris_kaggle.core.errors import first_line, format_bytes, format_count
from claris_kaggle.core.findings import BAD, GOOD, WARNING, Finding, run_check
from claris_kaggle.core.paths import DataDir, default_cache

_CHECKED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "pandas",
    "numpy",
    "scikit-learn",
    "kaggle",
    "joblib",
)
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 13)
_WHOLE_PACK_GB, _RUN_GB, _MEMORY_GB = 7.7, 1.0, 6.0


def check_installation(
    data: Path | None, cache: Path | None, *, account: bool, probe: Path | None = None
) -> list[Finding]:
    """Check Python, packages, devices, memory, disk and, if requested, the data and the Kaggle account.

    Args:
        data: folder of the competition's files; None skips this check.
        cache: folder of the packed patches; None is the default cache.
        account: ask Kaggle for login, rules, submissions and GPU hours. Needs the network.
        probe: rehearse a launch on Kaggle with a CPU script, and write its result to this file. Implies `account`.
    Returns:
        One or more findings per check. An exception in a check becomes a finding.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "python": _check_python,
        "packages": _check_packages,
        "torch pair": _check_torch_pair,
        "gpu": _check_devices,
        "memory": _check_memory,
        "disk": lambda: _check_disk(cache or default_cache()),
        "data": lambda: _check_data_folder(data),
        "kaggle account": lambda: _check_kaggle_account(account or probe is not None),
    }
    if probe is not None:
        checks["probe"] = lambda: _check_kaggle_probe(probe)
    findings = []
    for name, check in checks.items():
        try:
            findings += run_check(name, check)
        except Exception as error:  # a broken library must not stop the other checks
            found = f"{type(error).__name__}: {first_line(error)}"
            findings.append(Finding(name, BAD, found, "Install the packages again"))
    return findings


def _check_python() -> list[Finding]:
    """Check that the Python version is supported."""
    found = f"{platform.python_version()} at {sys.prefix}"
    if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        return [Finding("python", WARNING, found, "Use Python 3.11 to 3.13, the tested versions")]
    return [Finding("python", GOOD, found)]


def _check_packages() -> list[Finding]:
    """Check that the required packages are installed, and return their versions."""
    versions: dict[str, str | None] = dict.fromkeys(_CHECKED_PACKAGES)
    for name in _CHECKED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    install = " ".join(["pip install", *(name for name, version in versions.items() if version is None)])
    return [
        Finding(name, GOOD, version) if version else Finding(name, BAD, "not installed", install)
        for name, version in versions.items()
    ]


def _check_torch_pair() -> list[Finding]:
    """Check that torch and torchvision match: torchvision's operators load only with the torch they were built for."""
    found = " with ".join(importlib.metadata.version(name) for name in ("torch", "torchvision"))
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        hint = "Install both in one command: pip install --upgrade torch torchvision"
        return [Finding("torch pair", BAD, f"{found}: {first_line(error)}", hint)]
    return [Finding("torch pair", GOOD, found)]


def _check_devices() -> list[Finding]:
    """Check the GPUs and their memory, and that torch can compute on each of them."""
    import torch

    if not torch.cuda.is_available():
        if count := torch.cuda.device_count():
            hint = "Update the GPU driver, or install a torch build for the present driver"
            return [Finding("gpu", BAD, f"{format_count(count, 'GPU')} that torch cannot use", hint)]
        found = f"none; {os.cpu_count()} CPU cores"
        return [Finding("gpu", WARNING, found, "Train on Kaggle's two T4s (claris launch), or expect hours per epoch")]
    findings = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 1e9
        found = f"{properties.name}, {memory:.0f} GB"
        try:
            torch.ones(1, device=torch.device("cuda", number)).sum().item()
        except RuntimeError as error:  # such as a GPU that is too old for this build of torch
            hint = "If its memory is full, free it. Otherwise install a torch build for it, or set CUDA_VISIBLE_DEVICES"
            findings.append(Finding(f"gpu {number}", BAD, f"{found}: {first_line(error)}", hint))
            continue
        state = GOOD if memory >= 8 else WARNING
        findings.append(Finding(f"gpu {number}", state, found, "" if state == GOOD else "Give a smaller --batch-size"))
    return findings


def _check_memory() -> list[Finding]:
    """Check that the memory is large enough for worker processes and the page cache."""
    size = platforms.total_memory()
    if size is None:
        return [Finding("memory", WARNING, "not known", f"{_MEMORY_GB:.0f} GB are recommended")]
    total = size / 1e9
    if total < _MEMORY_GB:
        return [
            Finding("memory", WARNING, f"{total:.1f} GB", f"{_MEMORY_GB:.0f} GB are recommended: give fewer --workers")
        ]
    return [Finding("memory", GOOD, f"{total:.1f} GB")]


def _check_disk(cache: Path) -> list[Finding]:
    """Check that the packed patches of the whole competition fit on the disk of the cache."""
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{format_bytes(free)} free for packs at {cache}"
    if not os.access(existing, os.W_OK):
        return [Finding("disk", BAD, f"{existing} is not writable", "Give another folder with --cache")]
    if free / 1e9 < _WHOLE_PACK_GB + _RUN_GB:
        needed = f"{_WHOLE_PACK_GB + _RUN_GB:.1f} GB are needed for the whole competition"
        return [Finding("disk", WARNING, found, f"{needed}: give another folder with --cache")]
    return [Finding("disk", GOOD, found)]


def _check_data_folder(data: Path | None) -> list[Finding]:
    """Check that the competition's folder exists and its tables are readable."""
    if data is None:
        return [Finding("data", WARNING, "not checked", "Give it: claris doctor --data DIR")]
    from claris_kaggle.data import tables

    folder = DataDir(data).require()
    ids, test_ids = tables.read_labels(folder.labels)[0], tables.read_sample(folder.sample)
    return [Finding("data", GOOD, f"{len(ids):,} training and {len(test_ids):,} test patches at {data}")]


def _check_kaggle_account(requested: bool) -> list[Finding]:
    """Check login, rules, submissions and GPU hours. Contacts Kaggle only if `requested` is true."""
    if not requested:
        return [Finding("kaggle account", WARNING, "not asked", "Check it with claris doctor --account")]
    from claris_kaggle.kaggle.account import check_account

    return check_account()


def _check_kaggle_probe(path: Path) -> list[Finding]:
    """Rehearse a launch with a CPU script. Return its result and the contents of Kaggle's image."""
    from claris_kaggle.kaggle.account import check_probe

    return check_probe(path)


def summary_line(findings: list[Finding]) -> str:
    """Return a one-line summary that names the failed checks."""
    bad = [finding.name for finding in findings if finding.state == BAD]
    return f"{len(bad)} to fix: {', '.join(bad)}" if bad else "all required checks passed"
