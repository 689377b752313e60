"""Verify the files that a session's manifest lists, and merge the parts of a run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from claris_kaggle.core.config import without_metadata
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import RunError, name_few
from claris_kaggle.core.files import create_folder, explain_disk_errors, read_json, sha256_file, write_bytes
from claris_kaggle.core.paths import RunDir

_MANIFEST = "claris-session.json"
# Status in a manifest that is written during the session. A killed session keeps this status.
_RUNNING = "running"


@dataclass(frozen=True)
class _FileDigest:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """The manifest of a session.

    Attributes:
        about: settings of the session, for information: job, push token (`mark`), commit and folds.
        status: how the session ended; `running` while it runs.
        message: reason of a failure.
        files: size and SHA-256 of each file, by its name in the output.
    """

    about: Mapping[str, object] = field(default_factory=dict)
    status: str = ""
    message: str = ""
    files: Mapping[str, _FileDigest] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the stored manifest. Entries that are not known are kept in `about`."""
        files = {name: _FileDigest(facts["bytes"], facts["sha256"]) for name, facts in stored.get("files", {}).items()}
        about = {name: value for name, value in stored.items() if name not in ("status", "message", "files")}
        status, message = str(stored.get("status", "")), str(stored.get("message", ""))
        return cls(about=about, status=status, message=message, files=files)

    def to_json(self) -> dict[str, object]:
        """Return the entries of the manifest's file."""
        files = {name: dataclasses.asdict(facts) for name, facts in self.files.items()}
        return {**self.about, "status": self.status, "message": self.message, "files": files}


def _copy_finished(folder: Path, files: Mapping[str, _FileDigest], target: Path) -> RunDir:
    """Copy the finished work of a killed session: its verified folds, and intact checkpoints of the others.

    Raises:
        RunError: the config or the fold file does not match the manifest.
        DiskError: a file cannot be read or written.
    """
    from claris_kaggle.training.checkpoint import is_whole_checkpoint

    broken = {Path(name).parent.name for name, facts in files.items() if not _is_intact(folder / name, facts)}
    common = {name: facts for name, facts in files.items() if not Path(name).parent.name.startswith("fold")}
    _verify_files(folder, common)
    if broken:
        log_info(f"{folder}: {', '.join(sorted(broken))} skipped, because incomplete")
    intact = [name for name in files if Path(name).parent.name not in broken]
    run = RunDir(target / "run")
    with explain_disk_errors(folder):
        for name in intact:
            write_bytes(target / name, (folder / name).read_bytes())
        for number, fold in RunDir(folder / "run").fold_dirs().items():
            if not run.fold(number).weights_manifest.exists() and is_whole_checkpoint(fold.checkpoint):
                write_bytes(run.fold(number).checkpoint, fold.checkpoint.read_bytes())
    return run


def _verify_files(folder: Path, files: Mapping[str, _FileDigest]) -> None:
    """Check that all files of a manifest are present and match it.

    Raises:
        RunError: files are missing or different; the message names the first.
    """
    wrong = [name for name, facts in files.items() if not _is_intact(folder / name, facts)]
    if wrong:
        found = f"{folder}: {len(wrong)} files differ from its manifest ({name_few(sorted(wrong))})"
        raise RunError(found, "", "Run the kernel that wrote them again")


def _is_intact(path: Path, digest: _FileDigest) -> bool:
    """Return True if the file exists with the size and SHA-256 in the manifest."""
    return path.is_file() and path.stat().st_size == digest.bytes and sha256_file(path) == digest.sha256


def _is_same_config(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    """Return True if the configs agree. The same starting weights may have different paths.

    Parts of a run may be of different versions of this package.
    """
    first, second = without_metadata(first), without_metadata(second)
    same_weights = bool(first.get("weights_sha256")) and first["weights_sha256"] == second.get("weights_sha256")
    return {**first, "weights": second.get("weights")} == second if same_weights else first == second


def _merge_runs(sources: Sequence[RunDir], target: RunDir) -> None:
    """Copy the folds of several parts of a run into one folder. A finished fold replaces an unfinished one.

    Raises:
        RunError: the parts have different configs or folds.
        DiskError: a file cannot be read or written.
    """
    with explain_disk_errors(target.root):
        for source in (one for one in sources if one.config.exists()):
            statistics = [source.statistics] if source.statistics.exists() else []
            for path in (source.config, source.folds, source.folds.with_suffix(".json"), *statistics):
                copy = target.root / path.name
                if copy.exists() and path.suffix == ".csv" and copy.read_bytes() != path.read_bytes():
                    raise RunError(
                        f"{path}: folds differ from those of {copy}", "", "Give only parts of the same run as --input"
                    )
                if copy.exists() and path == source.config and not _is_same_config(read_json(copy), read_json(path)):
                    raise RunError(
                        f"{path}: config differs from that of {copy}", "", "Give only parts of the same run as --input"
                    )
                write_bytes(copy, path.read_bytes())
            for folder in sorted(source.root.glob("fold[0-9]*")):
                fold_folder = target.root / folder.name
                if not (fold_folder / "model.json").exists():
                    shutil.rmtree(fold_folder, ignore_errors=True)
                    with create_folder(fold_folder) as temporary:  # a partial copy could be taken for a finished fold
                        shutil.copytree(folder, temporary, dirs_exist_ok=True)
