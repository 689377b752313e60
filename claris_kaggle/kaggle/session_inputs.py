"""Find the inputs of a session by their contents, wherever Kaggle mounts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from claris_kaggle.core.errors import RunError
from claris_kaggle.core.files import read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.kaggle.manifest import _MANIFEST, _RUNNING, _copy_finished, _Manifest, _verify_files

_MAX_INPUT_DEPTH = 8
# Kaggle mounts inputs in folders by kind, or in its older layout without kind and owner.
_MOUNTS: tuple[tuple[str, ...], ...] = (("datasets",), ("notebooks",), ("models",), ())
_INPUT_DEPTHS = {"competitions": 1, "datasets": 2, "notebooks": 2, "models": 5}
_MAX_LISTED = 12
_INPUT_PATTERNS = ("*.safetensors", "*.pth", "slides.csv", "patch_id_wsi*.csv", "folds.csv", "pseudo*.csv")


def _walk_inputs(root: Path) -> list[tuple[Path, set[str]]]:
    """Return every folder below the root with the names of its files. Folders of patches are not searched."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if name not in ("train", "test") and depth < _MAX_INPUT_DEPTH)
        found.append((Path(folder), set(files)))
    return found


def find_data(root: Path | str = "/kaggle/input") -> DataDir:
    """Return the competition's folder among the inputs of a Kaggle session.

    Args:
        root: the folder of the inputs. The first folder below it with the competition's two tables is returned.
    Raises:
        RunError: there is none.
    """
    for folder, names in _walk_inputs(Path(root)):
        if {"train_labels.csv", "sample_submission.csv"} <= names:
            return DataDir(folder).require()
    found = f"{root}: no folder with train_labels.csv and sample_submission.csv"
    raise RunError(found, "expected the competition's files", "Add the competition to the kernel's inputs")


@dataclass(frozen=True, kw_only=True)
class _NamedFiles:
    """The input files that the settings name; None where they name none."""

    weights: Path | None = None
    slides: Path | None = None
    folds: Path | None = None
    extra: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _FileSettings:
    """The settings that name the only files that a session reads from its inputs.

    Attributes:
        weights_from, slides_from, folds_from, extra_from: starting weights, slide map, fold file and pseudo-labels as
            owner/dataset/file, or a file of another input; empty for none.
    """

    weights_from: str = ""
    slides_from: str = ""
    folds_from: str = ""
    extra_from: str = ""

    @property
    def named_files(self) -> dict[str, str]:
        """The values of the four settings, by their names."""
        return {name: getattr(self, name) for name in ("weights_from", "slides_from", "folds_from", "extra_from")}


def _find_named_files(root: Path, settings: _FileSettings) -> _NamedFiles:
    """Return the input file that each of the four settings names; None for an empty setting.

    Raises:
        RunError: one of them is not among the inputs; the message lists what is there.
    """
    names = {setting.removesuffix("_from"): name for setting, name in settings.named_files.items() if name}
    return _NamedFiles(**{kind: _find_named(root, name, f"--{kind}-from") for kind, name in names.items()})


def _find_named(root: Path, name: str, flag: str) -> Path:
    """Return the file that a flag names as owner/dataset/file, wherever Kaggle mounts that input.

    Kaggle mounts a dataset as `datasets/<owner>/<slug>` or, in its older layout, as `<slug>`; the outputs of kernels
    (`notebooks/...`) and models (`models/...`) likewise.

    Raises:
        RunError: the input, or the file in it, is not there; the message lists what is there.
    """
    *folders, file = name.split("/")
    for kind in _MOUNTS:
        path = _find_subfolder(root, [*kind, *(folders if kind else folders[1:])]) / file
        if path.is_file():
            return path
    owner, slug = folders[:2]
    for kind in _MOUNTS:
        folder = _find_subfolder(root, [*kind, *([owner] if kind else []), slug])
        if folder.is_dir():
            present = sorted(
                (subfolder / name).relative_to(folder).as_posix()
                for subfolder, names in _walk_inputs(folder)
                for name in names
            )
            found = f"{flag} {name}: there is no such file in {owner}/{slug}"
            raise RunError(found, f"it has {_name_first(present)}", f"Give one of these with {flag}")
    found = f"{flag} {name}: {owner}/{slug} is not among the inputs of this session"
    raise RunError(found, f"the inputs are: {_name_first(_list_inputs(root))}", "Check the name and its access rights")


def _find_subfolder(folder: Path, names: Sequence[str]) -> Path:
    """Return the subfolder with these names. Ignores case, as Kaggle's references do."""
    for name in names:
        matching = [path for path in folder.iterdir() if path.name.lower() == name.lower()] if folder.is_dir() else []
        folder = matching[0] if len(matching) == 1 else folder / name
    return folder


def _list_inputs(root: Path) -> list[str]:
    """Return the inputs of a session as Kaggle mounts them: datasets, competitions, models, outputs of kernels."""
    found: list[Path] = []
    for folder in root.iterdir():
        depth = _INPUT_DEPTHS.get(folder.name, 0)
        found += list(folder.glob("/".join("*" * depth))) if depth else [folder]
    return sorted(path.relative_to(root).as_posix() for path in found)


def _name_first(names: Sequence[str]) -> str:
    """Return the first names and the number of the others, as text."""
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "") if names else "no files"


def _find_unnamed(root: Path, data: DataDir, named: _NamedFiles) -> list[Path]:
    """Return the weights, slide maps and fold files among the inputs that no setting names. They are not used."""
    walked = _walk_inputs(root)
    outputs = [data.root, *(folder for folder, names in walked if _MANIFEST in names)]
    used = (named.weights, named.slides, named.folds, named.extra)
    return [
        folder / name
        for folder, names in walked
        for name in sorted(names)
        if any(fnmatch(name, pattern) for pattern in _INPUT_PATTERNS) and folder / name not in used
        if not any(folder.is_relative_to(output) for output in outputs)
    ]


def _find_runs(root: Path, temporary: Path) -> list[RunDir]:
    """Return the runs of earlier sessions among the inputs, every file verified.

    Args:
        root: folder of the inputs.
        temporary: folder for the finished folds of killed sessions.
    Raises:
        RunError: a file does not match its session's manifest.
    """
    found: list[RunDir] = []
    for folder, names in _walk_inputs(root):
        if _MANIFEST in names:
            manifest = _Manifest.from_json(read_json(folder / _MANIFEST))
            if manifest.status == _RUNNING:
                found.append(_copy_finished(folder, manifest.files, temporary / str(len(found))))
            else:
                _verify_files(folder, manifest.files)
                found.append(RunDir(folder / "run"))
    return found
