"""The inputs of a session, found by what they hold, wherever Kaggle mounts them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from claris_kaggle.core.errors import RunError
from claris_kaggle.core.files import read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.kaggle.manifest import MANIFEST, RUNNING, check_manifest, copy_finished

DEEPEST = 8
# Kaggle's folders of inputs by kind, and its older layout without kinds and owners.
MOUNTS: tuple[tuple[str, ...], ...] = (("datasets",), ("notebooks",), ("models",), ())
DEPTHS = {"competitions": 1, "datasets": 2, "notebooks": 2, "models": 5}
LISTED = 12
LIKELY = ("*.safetensors", "*.pth", "slides.csv", "patch_id_wsi*.csv", "folds.csv")


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


@dataclass(frozen=True, kw_only=True)
class NamedFiles:
    """The files among the inputs that the settings name; None where they name none."""

    weights: Path | None = None
    slides: Path | None = None
    folds: Path | None = None


def find_named_files(root: Path, settings: Mapping[str, Any]) -> NamedFiles:
    """Return the files that `weights_from`, `slides_from` and `folds_from` of the settings name.

    Raises:
        RunError: one of them is not among the inputs; the message lists what is there.
    """
    names = {kind: str(settings.get(f"{kind}_from") or "") for kind in ("weights", "slides", "folds")}
    return NamedFiles(**{kind: find_named(root, name, f"--{kind}-from") for kind, name in names.items() if name})


def find_named(root: Path, name: str, flag: str) -> Path:
    """Return the file that a flag names as owner/dataset/file, wherever Kaggle mounts that input.

    Kaggle mounts a dataset as `datasets/<owner>/<slug>` or, in its older layout, as `<slug>`; the outputs of kernels
    (`notebooks/...`) and models (`models/...`) likewise.

    Raises:
        RunError: the input, or the file in it, is not there; the message lists what is there.
    """
    *folders, file = name.split("/")
    for kind in MOUNTS:
        path = go_down(root, [*kind, *(folders if kind else folders[1:])]) / file
        if path.is_file():
            return path
    owner, slug = folders[:2]
    for kind in MOUNTS:
        folder = go_down(root, [*kind, *([owner] if kind else []), slug])
        if folder.is_dir():
            there = sorted((one / name).relative_to(folder).as_posix() for one, names in walk(folder) for name in names)
            found = f"{flag} {name}: there is no such file in {owner}/{slug}"
            raise RunError(found, f"it holds {list_some(there)}", f"Name one of these with {flag}")
    found = f"{flag} {name}: {owner}/{slug} is not among the inputs of this session"
    raise RunError(found, f"these are: {list_some(list_inputs(root))}", "Check the name, and who may read it")


def go_down(folder: Path, names: Sequence[str]) -> Path:
    """Return the folder below; capitals do not count, as in Kaggle's references."""
    for name in names:
        same = [one for one in folder.iterdir() if one.name.lower() == name.lower()] if folder.is_dir() else []
        folder = same[0] if len(same) == 1 else folder / name
    return folder


def list_inputs(root: Path) -> list[str]:
    """Return the inputs of a session as Kaggle mounts them: datasets, competitions, models, outputs of kernels."""
    found: list[Path] = []
    for one in root.iterdir():
        depth = DEPTHS.get(one.name, 0)
        found += list(one.glob("/".join("*" * depth))) if depth else [one]
    return sorted(path.relative_to(root).as_posix() for path in found)


def list_some(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more:,} more" if more > 0 else "") if names else "no files"


def find_unnamed(root: Path, data: DataDir, named: NamedFiles) -> list[Path]:
    """Return the weights, slide maps and fold files among the inputs that no setting names, and that are not used."""
    outputs = [data.root, *(folder for folder, names in walk(root) if MANIFEST in names)]
    used = (named.weights, named.slides, named.folds)
    return [
        folder / name
        for folder, names in walk(root)
        for name in sorted(names)
        if any(fnmatch(name, pattern) for pattern in LIKELY) and folder / name not in used
        if not any(folder.is_relative_to(output) for output in outputs)
    ]


def find_runs(root: Path, aside: Path) -> list[RunDir]:
    """Return the runs of earlier sessions among the inputs, every file verified.

    Args:
        aside: a folder for the finished folds of sessions that were ended early.
    Raises:
        RunError: a file is not the one that the session wrote.
    """
    found: list[RunDir] = []
    for folder, names in walk(root):
        if MANIFEST in names:
            manifest = read_json(folder / MANIFEST)
            if manifest.get("status") == RUNNING:
                found.append(copy_finished(folder, manifest, aside / str(len(found))))
            else:
                check_manifest(folder, manifest)
                found.append(RunDir(folder / "run"))
    return found
