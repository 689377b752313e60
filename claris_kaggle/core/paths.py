"""File names inside the folders that the stages share. Nothing is read at import."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from claris_kaggle.core.errors import DataError, RunError, UsageError, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json

_COMPETITION_FOLDER = "the competition's folder has train/, test/, train_labels.csv and sample_submission.csv"
_REQUIRED_COUNT = 4
_SEARCH_DEPTH = 4
_FOLD_NAME = re.compile(r"fold(0|[1-9][0-9]*)")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


@dataclass(frozen=True)
class _Folder:
    """A folder with files of known names.

    Attributes:
        root: the folder.
    """

    root: Path

    def __post_init__(self) -> None:
        """Convert `root` from text to a path."""
        object.__setattr__(self, "root", Path(self.root))

    @classmethod
    def at(cls, place: _Folder | Path | str) -> Self:
        """Return the folder at a path, or of another kind of folder. A folder of this kind is returned unchanged."""
        if isinstance(place, cls):
            return place
        return cls(Path(place.root if isinstance(place, _Folder) else place))


@dataclass(frozen=True)
class DataDir(_Folder):
    """The competition's folder. Its files are never modified.

    Attributes:
        root: the folder with train/, test/, train_labels.csv and sample_submission.csv.
    """

    @property
    def labels(self) -> Path:
        """The CSV of training labels: id,label."""
        return self.root / "train_labels.csv"

    @property
    def sample(self) -> Path:
        """The sample submission, with the test ids in the order of a submission: id,label."""
        return self.root / "sample_submission.csv"

    @property
    def slides(self) -> Path:
        """The slide map: id,wsi. Not one of the competition's files; `claris fetch --slides` adds it."""
        return self.root / "slides.csv"

    @property
    def generated(self) -> Path:
        """The mark of synthetic patches: a JSON file that `generate` writes. The competition's folder has none."""
        return self.root / "generated.json"

    def patches(self, split: str) -> Path:
        """Return the folder of TIFF files of a split, `train` or `test`."""
        return self.root / split

    def missing_parts(self) -> list[str]:
        """Return the names of the tables and folders that do not exist."""
        folders = [self.patches("train"), self.patches("test")]
        missing = [path.name for path in (self.labels, self.sample) if not path.exists()]
        return missing + [path.name for path in folders if not path.is_dir()]

    def require(self) -> DataDir:
        """Return this object after checking that the two tables and two folders exist.

        Raises:
            UsageError: one of them is missing.
        """
        if not self.root.is_dir():
            exists = self.root.exists()
            archive = self.root.name.lower().endswith(ARCHIVE_SUFFIXES)
            what = ("an archive" if archive else "a file") if exists else "no such folder"
            hint = "Unpack it, then give the folder" if exists and archive else "Give that folder as --data DIR"
            if re.match(r"https?:/", str(self.root)):
                what, hint = "a web address", "Download the data first: claris fetch --out DIR"
            elif self.root.is_symlink():
                what = f"a broken symbolic link to {self.root.readlink()}"
            raise UsageError(f"{self.root}: {what}", _COMPETITION_FOLDER, hint)
        missing = self.missing_parts()
        if missing:
            found = f"{self.root}: no {', '.join(missing)} there"
            raise UsageError(found, _COMPETITION_FOLDER, self._suggest_folder(missing))
        return self

    def _explain_similar_name(self, name: str, other: str) -> str:
        """Return a hint for a missing `name` when a file or folder with the similar name `other` exists."""
        path = self.root / other
        if path.is_symlink() and not path.exists():
            return f"{other} is a broken symbolic link to {path.readlink()}"
        spreadsheet = path.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers")
        return f"Save {other} as {name}" if spreadsheet else f"Rename {other!r} to {name}"

    def _suggest_folder(self, missing: Sequence[str]) -> str:
        """Return what to do about missing files: another folder that has them, or archives to unpack."""
        candidates = [self.root.resolve().parent, *_list_subfolders(self.root, _SEARCH_DEPTH)]
        other = next((path for path in candidates if not DataDir(path).missing_parts()), None)
        if other:
            return f"Give --data {other}"
        names = sorted(path.name for path in self.root.iterdir())
        similar = {name: other for name in missing for other in names if _is_similar_name(name, other)}
        if similar:
            return "; ".join(self._explain_similar_name(name, other) for name, other in similar.items())
        if any(name.lower().endswith(".tif") for name in names):
            return "Move its .tif files into train/ and test/, by the ids of the two tables"
        archives = sorted(path.name for path in self.root.iterdir() if path.name.lower().endswith(ARCHIVE_SUFFIXES))
        matching = [name for name in archives if name.split(".")[0] in {name.split(".")[0] for name in missing}]
        if matching or len(missing) == _REQUIRED_COUNT:
            archives = matching or archives
        return f"Unpack {name_few(archives)} there" if archives else "Give that folder as --data DIR"


@dataclass(frozen=True)
class FoldDir(_Folder):
    """The files of one fold of a run."""

    @property
    def checkpoint(self) -> Path:
        """The latest checkpoint, with the complete training state."""
        return self.root / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The weights of the finished fold; absent until the fold is finished."""
        return self.root / "model.safetensors"

    @property
    def weights_manifest(self) -> Path:
        """The SHA-256 of the finished weights, with epoch and AUC; written last."""
        return self.root / "model.json"

    @property
    def best_weights(self) -> Path:
        """The weights of the epoch with the highest validation AUC."""
        return self.root / "best.safetensors"

    @property
    def history(self) -> Path:
        """The training history, one row per epoch."""
        return self.root / "history.csv"

    @property
    def oof(self) -> Path:
        """The probabilities of the fold's validation patches."""
        return self.root / "oof.csv"

    @property
    def test(self) -> Path:
        """The fold's probabilities of the test patches."""
        return self.root / "test.csv"

    @property
    def predictions_manifest(self) -> Path:
        """The inputs of the two prediction files, with the SHA-256 of each file."""
        return self.root / "predictions.json"


@dataclass(frozen=True)
class RunDir(_Folder):
    """The folder of a run: one config trained on all folds.

    Attributes:
        root: the run's folder.
    """

    @property
    def config(self) -> Path:
        """The training config."""
        return self.root / "config.json"

    @property
    def folds(self) -> Path:
        """The run's copy of the fold file."""
        return self.root / "folds.csv"

    @property
    def oof(self) -> Path:
        """The out-of-fold probabilities of all folds."""
        return self.root / "oof.csv"

    @property
    def test(self) -> Path:
        """The test probabilities, averaged over the folds."""
        return self.root / "test.csv"

    @property
    def predicted_test(self) -> Path:
        """The file of test probabilities: `test.csv`, or `submission.csv` where another tool wrote only this."""
        submission = self.root / "submission.csv"
        return submission if submission.exists() and not self.test.exists() else self.test

    @property
    def metrics(self) -> Path:
        """The metrics (AUC, accuracy, log loss), per fold and overall."""
        return self.root / "metrics.json"

    @property
    def statistics(self) -> Path:
        """The colour and texture statistics of the training patches, written by predict."""
        return self.root / "image_statistics.json"

    @property
    def lock(self) -> Path:
        """The lock file, held by the one process that writes to the run."""
        return self.root / ".lock"

    def fold(self, fold: int) -> FoldDir:
        """Return the folder of fold number `fold`, counted from 0."""
        return FoldDir(self.root / f"fold{fold}")

    def fold_dirs(self) -> dict[int, FoldDir]:
        """Return the existing fold folders by number, ascending. Ignores names such as `fold0_old`."""
        found = (_FOLD_NAME.fullmatch(path.name) for path in self.root.glob("fold*"))
        return {number: self.fold(number) for number in sorted(int(one[1]) for one in found if one)}

    def describe_missing(self, names: str) -> str:
        """Return a message about missing files `names` or a missing folder, with the names of nearby runs."""
        exists = self.root.is_dir()
        parent = _find_nearest_folder(self.root.parent)
        runs = [] if exists else _list_run_names(parent)
        nearest = get_close_matches(self.root.name, runs, 1)
        suggestion = f"; did you mean {parent / nearest[0]}?" if nearest else ""
        nearby = f" (runs in {parent}: {name_few(runs)}{suggestion})" if runs else ""
        return f"{self.root}: {f'no {names} there' if exists else 'no such folder'}{nearby}"

    def missing_error(self, names: str, expected: str, hint: str) -> RunError:
        """Return the error for missing files or a missing folder.

        Args:
            names: the missing files, for the message.
            expected: what was expected.
            hint: what to do. The folder of a fold and a folder of runs get another hint, which names the runs.
        """
        root = self.root if self.root.name else self.root.absolute()
        if _FOLD_NAME.fullmatch(root.name) and RunDir(root.parent).config.exists():
            return RunError(f"{self.root}: the folder of one fold", expected, f"Give the run's folder: {root.parent}")
        if root.is_file():
            return RunError(f"{self.root}: a file", "expected the folder of a run", "Give its folder")
        runs = [] if self.config.exists() else _list_run_names(self.root)
        if runs:
            choice = name_few(shorten_path(self.root / name) for name in runs)
            hint = f"Give {choice}" if len(runs) == 1 else f"Give one of them: {choice}"
            return RunError(f"{shorten_path(self.root)}: a folder of runs", "expected one run", hint)
        return RunError(self.describe_missing(names), expected, hint)

    def finished_folds(self) -> list[int]:
        """Return the numbers of the folds that have a model.json. Does not verify the weights."""
        return [number for number, fold_dir in self.fold_dirs().items() if fold_dir.weights_manifest.exists()]


@dataclass(frozen=True)
class FoldRunDir(RunDir):
    """The folder of one fold of a run, used as a run of that fold only. It shares config and fold file with its run.

    Attributes:
        root: the fold's folder.
    """

    @property
    def run(self) -> RunDir:
        """The run of the fold."""
        return RunDir(self.root.parent)

    @property
    def number(self) -> int:
        """The number of the fold."""
        return int(self.root.name.removeprefix("fold"))

    @property
    def config(self) -> Path:
        """The training config of the run."""
        return self.run.config

    @property
    def folds(self) -> Path:
        """The run's copy of the fold file, with all folds."""
        return self.run.folds

    def fold(self, fold: int) -> FoldDir:
        """Return the folder of fold number `fold` of the run."""
        return self.run.fold(fold)

    def fold_dirs(self) -> dict[int, FoldDir]:
        """Return this folder by the number of its fold."""
        return {self.number: FoldDir(self.root)}


def recognise_fold(place: RunDir | Path | str) -> RunDir:
    """Return the folder of one fold of a run as a `FoldRunDir`, and any other folder unchanged."""
    run_dir = RunDir.at(place)
    root = run_dir.root.absolute()
    return FoldRunDir(root) if _FOLD_NAME.fullmatch(root.name) and RunDir(root.parent).folds.exists() else run_dir


@dataclass(frozen=True)
class ExportDir(_Folder):
    """The folder of an exported run: a single folder to share."""

    @property
    def checksums(self) -> Path:
        """The SHA-256 of every other file, in the format of sha256sum."""
        return self.root / "SHA256SUMS"

    @property
    def config(self) -> Path:
        """The training config, without paths."""
        return self.root / "config.json"

    @property
    def metadata(self) -> Path:
        """The metadata of the export: folds, thresholds, temperature, out-of-fold metrics and versions."""
        return self.root / "export.json"

    @property
    def statistics(self) -> Path:
        """The colour and texture statistics of the training patches; absent if the run has none."""
        return self.root / "image_statistics.json"

    @property
    def model_card(self) -> Path:
        """The model card: description, intended use and limitations."""
        return self.root / "README.md"

    @property
    def onnx(self) -> Path:
        """The ONNX file with all folds as one network; present only on request."""
        return self.root / "model.onnx"

    def weights(self, fold: int) -> Path:
        """Return the weights file of fold number `fold`."""
        return self.root / f"fold{fold}.safetensors"


def _list_subfolders(folder: Path, depth: int) -> list[Path]:
    """Return the folders below a folder up to this depth, without hidden ones; those near the top come first."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] not in "._")
    except OSError:
        return []
    return found + [path for entry in found if depth > 1 for path in _list_subfolders(entry, depth - 1)]


def _is_similar_name(name: str, other: str) -> bool:
    """Return True if `other` is a variant of `name`: a numbered download, a copy, or another file type."""
    stem, _, suffix = name.partition(".")
    added = r"( ?\(\d+\)| ?-? ?copy| \d+)?"
    endings = rf"\.{suffix}(\.txt)?|\.txt|\.xlsx?|\.ods|\.numbers" if suffix else ""
    return bool(re.fullmatch(rf"(copy of )?{re.escape(stem)}{added}({endings})", other, re.IGNORECASE))


def _find_nearest_folder(folder: Path) -> Path:
    """Return the folder, or if it does not exist, the one beside it with the most similar name, if there is one."""
    if folder.is_dir() or not folder.parent.is_dir():
        return folder
    names = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    return next((folder.with_name(name) for name in get_close_matches(folder.name, names, 1)), folder)


def _list_run_names(folder: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted. Folders of folds are no runs."""
    names = {path.parent.name for name in ("config.json", "oof.csv") for path in folder.glob(f"*/{name}")}
    return sorted(name for name in names if not _FOLD_NAME.fullmatch(name))


def shorten_path(path: Path) -> Path:
    """Return the path relative to the current folder if it is inside."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def require_suffix(path: Path, *endings: str) -> Path:
    """Return the path after checking its suffix.

    Args:
        path: the path to check.
        endings: allowed suffixes, such as `.csv`.
    Raises:
        UsageError: the name has none of the endings.
    """
    if path.suffix not in endings:
        raise UsageError(f"{path}: wrong file type", f"expected a name that ends in {endings[0]}")
    return path


def require_replaceable(path: Path, columns: Sequence[str]) -> None:
    """Raise if writing a CSV and its JSON would overwrite a file of another kind.

    Args:
        path: the CSV to write; the JSON has the same name with the suffix `.json`.
        columns: columns of the CSV.
    Raises:
        UsageError: the name does not end in .csv, is the name of a competition file, or belongs to a file with other
            columns; or the JSON was not written by this package.
        DiskError: an existing file cannot be read.
    """
    require_suffix(path, ".csv")
    if path.name in (DataDir(path.parent).labels.name, DataDir(path.parent).sample.name):
        raise UsageError(f"{path}: the competition's own file", "it is never modified", "Give another --out")
    json_path = path.with_suffix(".json")
    with explain_disk_errors(path):
        if path.exists() and path.stat().st_size > 0:
            with path.open("rb") as stream:
                header = stream.readline(200).decode("utf-8-sig", "replace").strip()
            if header != ",".join(columns):
                found = f"{path}: already exists as another kind of file (first line {header[:80]!r})"
                raise UsageError(found, "nothing was changed", "Give another --out")
        if json_path.exists() and not _is_written_by_claris(json_path):
            found = f"{json_path}: already exists; the metadata of {path.name} would overwrite it"
            raise UsageError(found, "nothing was changed", "Give another --out")


def _is_written_by_claris(path: Path) -> bool:
    """Return True if the JSON file was written by this package."""
    try:
        versions = read_json(path).get("versions")
    except DataError:
        return False
    return isinstance(versions, dict) and "claris_kaggle" in versions


def default_cache() -> Path:
    """Return the default folder of packed patches, in the user's cache folder (`--cache` overrides it).

    Raises:
        UsageError: this user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "claris_kaggle"
    except RuntimeError as error:
        raise UsageError("this user has no home folder for the cache", "", "Give a folder with --cache") from error
