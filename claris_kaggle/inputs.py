"""The inputs of a session, found by what they hold, wherever Kaggle mounts them; and parts of a run made one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from claris_kaggle.errors import RunError, name_few
from claris_kaggle.files import explain_disk_errors, new_folder, read_json, sha256_file, write_bytes
from claris_kaggle.paths import DataDir, RunDir

MANIFEST = "claris-session.json"
DEEPEST = 8


def walk(root: Path) -> list[tuple[Path, set[str]]]:
    """Every folder below the root with the names of its files, not going down into folders of patches."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if name not in ("train", "test") and depth < DEEPEST)
        found.append((Path(folder), set(files)))
    return found


def find_data(root: Path) -> DataDir:
    """The competition's folder among the inputs below `root`: the one with its two tables.

    Raises:
        RunError: there is none.
    """
    for folder, names in walk(root):
        if {"train_labels.csv", "sample_submission.csv"} <= names:
            return DataDir(folder).require()
    found = f"{root}: no folder with train_labels.csv and sample_submission.csv"
    raise RunError(found, "the competition's files are needed", "Add the competition to the kernel's inputs")


def find_one(root: Path, patterns: Sequence[str]) -> Path | None:
    """The first file among the inputs, outside earlier sessions' outputs, whose name fits one of the patterns."""
    outputs = [folder for folder, names in walk(root) if MANIFEST in names]
    for folder, names in walk(root):
        if not any(folder.is_relative_to(output) for output in outputs):
            fitting = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
            if fitting:
                return folder / fitting[0]
    return None


def find_runs(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The outputs of earlier sessions among the inputs, each with its manifest, every file proved.

    Raises:
        RunError: a file is not the one that the session wrote.
    """
    found = []
    for folder, names in walk(root):
        if MANIFEST in names:
            manifest = read_json(folder / MANIFEST)
            check_manifest(folder, manifest)
            found.append((folder, manifest))
    return found


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse files that are missing or not those of the manifest.

    Raises:
        RunError: naming the first of them.
    """
    wrong = [name for name, facts in manifest.get("files", {}).items() if not is_whole(folder / name, facts)]
    if wrong:
        found = f"{folder}: {len(wrong)} files are not those of its manifest ({name_few(sorted(wrong))})"
        raise RunError(found, "", "Run the kernel that wrote them again")


def is_whole(path: Path, facts: dict[str, Any]) -> bool:
    """Whether the file is there with the size and SHA-256 that a manifest gives."""
    return path.is_file() and path.stat().st_size == facts["bytes"] and sha256_file(path) == facts["sha256"]


def merge_runs(sources: Sequence[RunDir], target: RunDir) -> None:
    """Copy the folds of several parts of one run into one folder, each whole; a finished one before an unfinished one.

    Raises:
        RunError: the parts have different configs or folds.
        DiskError: a file cannot be read or written.
    """
    with explain_disk_errors(target.root):
        for source in (one for one in sources if one.config.exists()):
            for path in (source.config, source.folds, source.folds.with_suffix(".json")):
                copy = target.root / path.name
                if copy.exists() and path.suffix == ".csv" and copy.read_bytes() != path.read_bytes():
                    raise RunError(f"{path}: other folds than {copy}", "", "Merge the parts of one run only")
                if copy.exists() and path == source.config and read_json(copy) != read_json(path):
                    raise RunError(f"{path}: another config than {copy}", "", "Merge the parts of one run only")
                write_bytes(copy, path.read_bytes())
            for folder in sorted(source.root.glob("fold[0-9]*")):
                place = target.root / folder.name
                if not (place / "model.json").exists():
                    shutil.rmtree(place, ignore_errors=True)
                    with new_folder(place) as aside:  # a half copied fold could pass for a finished one
                        shutil.copytree(folder, aside, dirs_exist_ok=True)
