"""Inputs of training and prediction: tables and pixels of the competition's folder, joined by id."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from claris_kaggle.core.console import Progress, log_info
from claris_kaggle.core.errors import DataError, DiskError, format_count
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data import fold_file as fold_files
from claris_kaggle.data import tables
from claris_kaggle.data.fold_file import Folds
from claris_kaggle.data.fold_split import make_folds
from claris_kaggle.data.pack import Pack, _require_files, ensure_pack, open_pack, pack_folder
from claris_kaggle.data.parallel import _map_chunks
from claris_kaggle.data.patches import patch_id, read_patch
from claris_kaggle.data.pseudo_file import PseudoLabels, read_pseudo_file


@dataclass(frozen=True)
class TrainingData:
    """The training patches with their labels and folds, checked against each other.

    Attributes:
        folds: labels and folds of the training patches.
        pack: the training patches.
        pseudo: pseudo-labels of test patches; None for none.
        test_pack: the test patches; None without pseudo-labels.
    """

    folds: Folds
    pack: Pack
    pseudo: PseudoLabels | None = None
    test_pack: Pack | None = None

    @property
    def extra_sha256(self) -> str:
        """The SHA-256 of the pseudo-labels; empty for none."""
        return self.pseudo.digest if self.pseudo else ""

    def count_train(self, fold: int) -> int:
        """Return the number of patches that fold number `fold` trains on, with its pseudo-labelled ones."""
        return len(self.folds.train_rows(fold)) + (len(self.pseudo.rows(fold)) if self.pseudo else 0)


def read_training(
    data: DataDir, fold_file: Path, cache: Path, *, verified: bool = False, extra: Path | None = None,
    folds: Folds | None = None, pseudo: PseudoLabels | None = None,
) -> TrainingData:  # fmt: skip
    """Return labels, folds and pack of the training patches; create the pack if it does not exist.

    Args:
        data: the competition's folder.
        fold_file: the fold file.
        cache: folder of packs.
        verified: True opens the pack without verifying it, because another process has just done so.
        extra: file of pseudo-labels; adds them and the pack of the test patches.
        folds: result of `read_training_folds` for this file, if it was read already.
        pseudo: result of `read_pseudo_file` for `extra`, if it was read already.
    Raises:
        ClarisError: a table or patch has an error, or the fold file or the pseudo-labels belong to other data.
    """
    folds = folds or read_training_folds(data, fold_file)
    ids = folds.ids
    if extra is None:
        return TrainingData(folds, get_pack(data, "train", ids, cache, verified=verified))
    test_ids = tables.read_sample(data.sample)
    pseudo = pseudo or read_pseudo_file(extra, folds, test_ids)
    train_pack = get_pack(data, "train", ids, cache, verified=verified)
    return TrainingData(folds, train_pack, pseudo, get_pack(data, "test", test_ids, cache, verified=verified))


def read_training_folds(data: DataDir, fold_file: Path) -> Folds:
    """Return the folds in the file after checking that they are those of the training labels.

    Args:
        data: the competition's folder; only `train_labels.csv` is read.
        fold_file: the fold file.
    Raises:
        ClarisError: a table has an error, or the fold file belongs to other data.
    """
    ids, labels = tables.read_labels(data.labels)
    folds = fold_files.read_folds(fold_file, dict(zip(ids, labels.tolist(), strict=True)))
    fold_files.check_folds(folds, ids, labels, fold_file)
    return folds


def get_pack(data: DataDir, split: str, ids: Sequence[str], cache: Path, *, verified: bool = False) -> Pack:
    """Return the pack of the ids of a split, `train` or `test`; other arguments as in `read_training`."""
    if verified:
        return open_pack(pack_folder(cache, split, ids), ids)
    return ensure_pack(data.patches(split), ids, cache)


def make_packs(data: DataDir, cache: Path, jobs: int = 0, *, verify_all: bool = False) -> list[Pack]:
    """Return the verified packs of the training and test patches; arguments as in `ensure_pack`."""
    train_ids, _ = tables.read_labels(data.labels)
    splits = {"train": train_ids, "test": tables.read_sample(data.sample)}
    for split, ids in splits.items():  # missing files of both are found before the first is packed
        if not pack_folder(cache, split, ids).exists():
            _require_files(data.patches(split), ids)
    return [ensure_pack(data.patches(split), ids, cache, jobs, verify_all=verify_all) for split, ids in splits.items()]


def _hash_patches(source: Path, ids: Sequence[str]) -> list[str]:
    """Return the SHA-1 of each id's pixels, in the order of `ids`, read from the TIFF files in a folder."""
    _require_files(source, ids)
    with Progress(f"look for duplicates in {source.name}", len(ids)) as progress:
        parts = _map_chunks(functools.partial(_hash_files, source), ids, 0, progress)
        return [digest for part in parts for digest in part]


def _hash_files(source: Path, start: int, names: Sequence[str]) -> list[str]:
    """Return the SHA-1 of the pixels of each file."""
    return [patch_id(read_patch(f"{source}/{name}.tif")) for name in names]


def _find_contents(data: DataDir, ids: Sequence[str], cache: Path) -> list[str] | None:
    """Return the SHA-1 of each patch's pixels, to find duplicates; None if a pack shows that there are none.

    The id of a packed patch is the SHA-1 of its pixels, so different ids have different pixels.
    """
    try:
        open_pack(pack_folder(cache, "train", ids), ids)
        return None
    except (DataError, DiskError):
        return _hash_patches(data.patches("train"), ids)


def make_fold_file(
    data: DataDir | Path | str,
    out: Path | str,
    *,
    slides: Path | str | None = None,
    k: int = 5,
    seed: int = 0,
    cache: Path | str,
    force: bool = False,
) -> Folds:
    """Split the training patches, write the fold file with its JSON, and return the folds.

    Args:
        data: the competition's folder.
        out: the CSV to write.
        slides: a CSV with the slide of each training id; then every slide is in exactly one fold.
        k, seed: as in `make_folds`.
        cache: folder of packs; with a pack the search for duplicates is not needed.
        force: replace an existing fold file that has other folds.
    Raises:
        ClarisError: a table or patch has an error, k is impossible, or `out` contains other folds.
    """
    data, out = DataDir.at(data), Path(out)
    ids, labels = tables.read_labels(data.labels)
    groups = tables.read_slides(Path(slides), ids) if slides else None
    folds = make_folds(ids, labels, k=k, seed=seed, slides=groups, contents=_find_contents(data, ids, Path(cache)))
    about: dict[str, object] = {"seed": seed, "labels_sha256": tables.digest_rows(ids, labels)}
    if groups:
        about["slides_sha256"] = tables.digest_rows(ids, groups)
    if not fold_files.write_folds(out, folds, about, overwrite=force):
        log_info(f"{out}: an identical fold file already exists")
    return folds


def check_fold_file(data: DataDir, path: Path, *, slides: Path | None = None, cache: Path) -> Folds:
    """Return the folds in the file after checking that they match the data and do not leak.

    Raises:
        ClarisError: the file has an error, belongs to other data, or has a slide or duplicates in two folds.
    """
    folds = read_training_folds(data, path)
    ids, labels = folds.ids, folds.labels
    if slides:
        fold_files.check_folds(folds, ids, labels, path, slides=tables.read_slides(slides, ids))
    fold_files.check_folds(folds, ids, labels, path, contents=_find_contents(data, ids, cache))
    log_info(f"{path}: {format_count(len(ids), 'patch', 'patches')} in {folds.k} folds")
    return folds
