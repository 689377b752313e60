"""Verify the files that a session's manifest lists, and merge the parts of a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import RunError, name_few
from claris_kaggle.core.files import create_folder, explain_disk_errors, read_json, sha256_file, write_bytes
from claris_kaggle.core.paths import RunDir

_MANIFEST = "claris-session.json"
# Status in a manifest that was written during the session. It remains if the session is killed.
_RUNNING = "running"


def _copy_finished(folder: Path, manifest: dict[str, Any], target: Path) -> RunDir:
    """Copy the finished work of a killed session: its verified folds, and intact checkpoints of the others.

    Raises:
        RunError: the config or the fold file does not match the manifest.
        DiskError: a file cannot be read or written.
    """
    from claris_kaggle.training.checkpoint import is_whole_checkpoint

    files: dict[str, Any] = manifest["files"]
    broken = {Path(name).parent.name for name, facts in files.items() if not _is_whole(folder / name, facts)}
    common = {name: facts for name, facts in files.items() if not Path(name).parent.name.startswith("fold")}
    _check_manifest(folder, {"files": common})
    if broken:
        log_info(f"{folder}: {', '.join(sorted(broken))} left out, as not whole")
    whole = [name for name in files if Path(name).parent.name not in broken]
    run = RunDir(target / "run")
    with explain_disk_errors(folder):
        for name in whole:
            write_bytes(target / name, (folder / name).read_bytes())
        for number, fold in RunDir(folder / "run").fold_dirs().items():
            if not run.fold(number).weights_manifest.exists() and is_whole_checkpoint(fold.checkpoint):
                write_bytes(run.fold(number).checkpoint, fold.checkpoint.read_bytes())
    return run


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that all files of the manifest are present and match it.

    Raises:
        RunError: files are missing or different; the message names the first.
    """
    wrong = [name for name, facts in manifest.get("files", {}).items() if not _is_whole(folder / name, facts)]
    if wrong:
        found = f"{folder}: {len(wrong)} files are not those of its manifest ({name_few(sorted(wrong))})"
        raise RunError(found, "", "Run the kernel that wrote them again")


def _is_whole(path: Path, facts: dict[str, Any]) -> bool:
    """Return True if the file exists with the size and SHA-256 in the manifest."""
    return path.is_file() and path.stat().st_size == facts["bytes"] and sha256_file(path) == facts["sha256"]


def _is_same_config(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if the configs agree. The same starting weights may have different paths."""
    same_weights = bool(one.get("weights_sha256")) and one["weights_sha256"] == other.get("weights_sha256")
    return {**one, "weights": other.get("weights")} == other if same_weights else one == other


def _merge_runs(sources: Sequence[RunDir], target: RunDir) -> None:
    """Copy the folds of several parts of a run into one folder. A finished fold replaces an unfinished one.

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
                if copy.exists() and path == source.config and not _is_same_config(read_json(copy), read_json(path)):
                    raise RunError(f"{path}: another config than {copy}", "", "Merge the parts of one run only")
                write_bytes(copy, path.read_bytes())
            for folder in sorted(source.root.glob("fold[0-9]*")):
                place = target.root / folder.name
                if not (place / "model.json").exists():
                    shutil.rmtree(place, ignore_errors=True)
                    with create_folder(place) as aside:  # a partial copy could be taken for a finished fold
                        shutil.copytree(folder, aside, dirs_exist_ok=True)
