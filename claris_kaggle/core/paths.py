"""Names inside the folders that the stages share. Nothing is looked up at import."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from claris_kaggle.core.errors import DataError, UsageError, name_few
from claris_kaggle.core.files import explain_disk_errors, read_json


@dataclass(frozen=True)
class DataDir:
    """The competition's folder, which is only ever read.

    Attributes:
        root: holds train/, test/, train_labels.csv and sample_submission.csv.
    """

    root: Path

    def __post_init__(self) -> None:
        """Take the name of a folder for the folder."""
        object.__setattr__(self, "root", Path(self.root))

    @property
    def labels(self) -> Path:
        """The labels of the training patches: id,label."""
        return self.root / "train_labels.csv"

    @property
    def sample(self) -> Path:
        """The sample submission, which lists the test ids in order: id,label."""
        return self.root / "sample_submission.csv"

    def patches(self, split: str) -> Path:
        """The folder of TIFF files of a split, `train` or `test`."""
        return self.root / split

    def require(self) -> DataDir:
        """Itself, once its two tables and two folders are known to be there.

        Raises:
            UsageError: one of them is missing.
        """
        needed = [self.labels, self.sample, self.patches("train"), self.patches("test")]
        missing = [path.name for path in needed if not path.exists()]
        if missing:
            raise UsageError(
                f"{self.root}: no {', '.join(missing)} there",
                "the competition's folder holds train/, test/, train_labels.csv and sample_submission.csv",
                "Give that folder as --data DIR",
            )
        return self


@dataclass(frozen=True)
class FoldDir:
    """What one fold of a run leaves behind."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        """The newest full training state."""
        return self.root / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The finished fold's weights; there only when the fold is finished."""
        return self.root / "model.safetensors"

    @property
    def weights_manifest(self) -> Path:
        """Written last: the SHA-256 of the finished weights, with epoch and AUC."""
        return self.root / "model.json"

    @property
    def best_weights(self) -> Path:
        """The weights of the epoch with the highest validation AUC."""
        return self.root / "best.safetensors"

    @property
    def history(self) -> Path:
        """One row an epoch."""
        return self.root / "history.csv"

    @property
    def oof(self) -> Path:
        """Probabilities of the fold's validation patches."""
        return self.root / "oof.csv"

    @property
    def test(self) -> Path:
        """This fold's probabilities of the test patches."""
        return self.root / "test.csv"

    @property
    def predictions_manifest(self) -> Path:
        """What the two prediction files were made from, with their SHA-256."""
        return self.root / "predictions.json"


@dataclass(frozen=True)
class RunDir:
    """One config trained over all folds.

    Attributes:
        root: the run's folder.
    """

    root: Path

    def __post_init__(self) -> None:
        """Take the name of a folder for the folder."""
        object.__setattr__(self, "root", Path(self.root))

    @property
    def config(self) -> Path:
        """The frozen config."""
        return self.root / "config.json"

    @property
    def folds(self) -> Path:
        """The run's own copy of its fold file."""
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
    def metrics(self) -> Path:
        """AUC, accuracy and log loss, per fold and overall."""
        return self.root / "metrics.json"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes here."""
        return self.root / ".lock"

    def fold(self, fold: int) -> FoldDir:
        """The folder of fold number `fold`, counted from 0."""
        return FoldDir(self.root / f"fold{fold}")

    def fold_dirs(self) -> dict[int, FoldDir]:
        """The folders of folds that are there, by number, ascending; not `fold0_old` and the like."""
        found = (re.fullmatch(r"fold(0|[1-9][0-9]*)", path.name) for path in self.root.glob("fold*"))
        return {number: self.fold(number) for number in sorted(int(one[1]) for one in found if one)}

    def lacks(self, names: str) -> str:
        """What is said of a folder that lacks the files `names`, or is not there, with the runs that may be meant."""
        there = self.root.is_dir()
        where = self.root if there else self.root.parent
        runs = sorted({path.parent.name for name in ("config.json", "oof.csv") for path in where.glob(f"*/{name}")})
        near = f" (runs in {where}: {name_few(runs)})" if runs else ""
        return f"{self.root}: {f'no {names} there' if there else 'no such folder'}{near}"

    def finished_folds(self) -> list[int]:
        """The numbers of the folds that say they are finished; whether they are is for who loads them."""
        return [number for number, fold_dir in self.fold_dirs().items() if fold_dir.weights_manifest.exists()]


@dataclass(frozen=True)
class ExportDir:
    """A run's networks as one folder to hand on."""

    root: Path

    @property
    def sums(self) -> Path:
        """The SHA-256 of every other file, as sha256sum writes and checks them."""
        return self.root / "SHA256SUMS"

    @property
    def config(self) -> Path:
        """The run's config, without paths."""
        return self.root / "config.json"

    @property
    def facts(self) -> Path:
        """Folds, thresholds, temperature, out-of-fold figures, versions."""
        return self.root / "export.json"

    @property
    def card(self) -> Path:
        """What the model is, what it can do and what it cannot."""
        return self.root / "README.md"

    @property
    def onnx(self) -> Path:
        """All folds as one network for other programs; there only when asked for."""
        return self.root / "model.onnx"

    def weights(self, fold: int) -> Path:
        """The weights of fold number `fold`."""
        return self.root / f"fold{fold}.safetensors"


def require_suffix(path: Path, *endings: str) -> Path:
    """The path itself.

    Raises:
        UsageError: its name has none of the endings, such as `.csv`.
    """
    if path.suffix not in endings:
        raise UsageError(f"{path}: another kind of file", f"a name that ends in {endings[0]} is needed")
    return path


def require_replaceable(path: Path, columns: Sequence[str]) -> None:
    """Refuse to write a CSV of these columns, and the JSON beside it, over anything but an older one of that kind.

    Raises:
        UsageError: the name does not end in .csv, is one of the competition's, or is that of a file that does not
            begin with these columns; or the JSON beside it is not one of ours.
        DiskError: what is there cannot be read.
    """
    require_suffix(path, ".csv")
    if path.name in (DataDir(path.parent).labels.name, DataDir(path.parent).sample.name):
        raise UsageError(f"{path}: the competition's own file", "it is only read", "Give another --out")
    about = path.with_suffix(".json")
    with explain_disk_errors(path):
        if path.exists() and path.stat().st_size > 0:
            with path.open("rb") as stream:
                header = stream.readline(200).decode("utf-8-sig", "replace").strip()
            if header != ",".join(columns):
                found = f"{path}: another file is there (its first line is {header[:80]!r})"
                raise UsageError(found, "nothing was changed", "Give another --out")
        if about.exists() and not _is_written_by_claris(about):
            found = f"{about}: another file is there, where what is known of {path.name} would go"
            raise UsageError(found, "nothing was changed", "Give another --out")


def _is_written_by_claris(path: Path) -> bool:
    """Whether the JSON says that it was written by this package."""
    try:
        versions = read_json(path).get("versions")
    except DataError:
        return False
    return isinstance(versions, dict) and "claris_kaggle" in versions


def default_cache() -> Path:
    """Where packs go unless `--cache` says otherwise: the user's cache folder.

    Raises:
        UsageError: this user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "claris_kaggle"
    except RuntimeError as error:
        raise UsageError("this user has no home to keep packs in", "", "Name a folder with --cache") from error
