"""Test competition folders as people unpack and convert them: hidden files are ignored, other faults are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from claris_kaggle.core.errors import PatchError, UsageError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.integrity import check_data
from claris_kaggle.data.pack import ensure_pack
from claris_kaggle.data.tables import read_labels
from claris_kaggle.serving.images import list_images


@pytest.fixture
def data(tmp_path: Path, handful: DataDir) -> DataDir:
    return DataDir(shutil.copytree(handful.root, tmp_path / "data"))


def test_hidden_files_of_macos_and_windows_are_no_patches(data: DataDir, tmp_path: Path) -> None:
    folder = data.patches("train")
    for path in list(folder.glob("*.tif")):
        (folder / f"._{path.name}").write_bytes(b"\0\x05\x16\x07")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._.DS_Store"):
        (folder / name).write_bytes(b"x")
    assert check_data(data).faults == []
    assert len(ensure_pack(folder, read_labels(data.labels)[0], tmp_path / "cache").ids) == 20
    assert len(list_images([folder])) == 20


def nest(folder: Path, names: Callable[[Path], str]) -> None:
    """Move each patch to the path that `names` returns, relative to its folder."""
    for path in sorted(folder.glob("*.tif")):
        target = folder / names(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def convert(folder: Path, suffix: str) -> None:
    """Save each patch in another format."""
    for path in sorted(folder.glob("*.tif")):
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()


def archive(folder: Path, name: str) -> None:
    """Remove half of the patches, as after an interrupted unpacking, and write the first bytes of an archive."""
    for path in sorted(folder.glob("*.tif"))[::2]:
        path.unlink()
    (folder / name).write_bytes(b"PK\x03\x04")


# name: (what somebody did to the folder of patches, words of the message)
LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nested": (
        lambda folder: nest(folder, lambda path: f"train/{path.name}"), "the files are in train/train: move them"
    ),
    "classes": (
        lambda folder: nest(folder, lambda path: f"{int(path.name[0] > '7')}/{path.name}"),
        "the files are in train/0, train/1: move them",
    ),
    "classes below": (
        lambda folder: nest(folder, lambda path: f"train/{'benign' if path.name[0] > '7' else 'x'}/{path.name}"),
        "the files are in train/train/benign, train/train/x",
    ),
    "capital suffix": (
        lambda folder: nest(folder, lambda path: f"{path.stem}.TIF"), "the files end in .TIF, not in .tif: rename them"
    ),
    "tiff": (lambda folder: nest(folder, lambda path: f"{path.stem}.tiff"), "end in .tiff, not in .tif: rename them"),
    "png": (lambda folder: convert(folder, ".png"), "end in .png, not in .tif: convert them to uncompressed TIFF"),
    "jpeg": (lambda folder: convert(folder, ".jpg"), "end in .jpg, not in .tif: lossy compression changed"),
    "deep": (lambda folder: nest(folder, lambda path: f"a/input/b/{path.name}"), "in train/a/input/b: move them"),
    "a second folder": (
        lambda folder: nest(folder, lambda path: f"../train (1)/{path.name}"), "the files are in train (1): move them"
    ),
    "the other split": (lambda folder: nest(folder, lambda path: f"../test/{path.name}"), "are in test: move them"),
    "beside the tables": (lambda folder: nest(folder, lambda path: f"../{path.name}"), "are in data: move them"),
    "copies of a browser": (
        lambda folder: nest(folder, lambda path: f"{path.stem} (1).tif"), "file names are not those of Kaggle"
    ),
    "labels in names": (lambda folder: nest(folder, lambda path: f"1_{path.name}"), "rename them to <id>.tif"),
    "no suffix": (lambda folder: nest(folder, lambda path: path.stem), "rename them to <id>.tif"),
    "unfinished": (
        lambda folder: nest(folder, lambda path: f"{path.name}.crdownload"), "20 unfinished downloads (.tif.crdownload)"
    ),
    "placeholders": (
        lambda folder: nest(folder, lambda path: f".{path.name}.icloud"), "20 placeholders (.tif.icloud): let the cloud"
    ),
    "gzip": (lambda folder: nest(folder, lambda path: f"{path.name}.gz"), "20 compressed files (.tif.gz): unpack them"),
    "an archive beside": (lambda folder: archive(folder, "../train.zip"), "npack data/train.zip into"),
    "an archive inside": (lambda folder: archive(folder, "train.zip"), "npack train/train.zip into"),
    "capital ids": (
        lambda folder: nest(folder, lambda path: f"{path.stem.upper()}.tif"), "in capital letters: rename"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_where_the_patches_are_is_said(data: DataDir, tmp_path: Path, name: str) -> None:
    change, words = LAYOUTS[name]
    change(data.patches("train"))
    assert any(words in fault for fault in check_data(data).faults)
    with pytest.raises(PatchError) as caught:
        ensure_pack(data.patches("train"), read_labels(data.labels)[0], tmp_path / "cache")
    assert words[1:] in str(caught.value) and "\n" not in str(caught.value)


def test_copies_of_a_cloud_storage_are_to_be_removed_only_beside_their_file(data: DataDir, tmp_path: Path) -> None:
    folder = data.patches("train")
    first = sorted(folder.glob("*.tif"))[0]
    copy = shutil.copy(first, folder / f"{first.stem} (Ada's conflicted copy).tif")
    for words in ("Remove the copies, such as", "conflicted copy).tif"):
        assert any(words in fault for fault in check_data(data).faults)
        with pytest.raises(PatchError) as caught:
            ensure_pack(folder, read_labels(data.labels)[0], tmp_path / "cache")
        assert words in str(caught.value)
    first.unlink()
    assert copy.exists() and not any("Remove" in fault for fault in check_data(data).faults)


def test_a_broken_link_is_named(data: DataDir) -> None:
    first = sorted(data.patches("train").glob("*.tif"))[0]
    first.unlink()
    first.symlink_to("/nowhere/patch.tif")
    assert any("a broken symbolic link to /nowhere/patch.tif" in fault for fault in check_data(data).faults)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("train", "train (1)", "Rename 'train (1)' to train"),
        ("train", "Train", "Rename 'Train' to train"),
        ("test", "test - Copy", "Rename 'test - Copy' to test"),
        ("train_labels.csv", "train_labels (2).csv", "to train_labels.csv"),
        ("train_labels.csv", "train_labels.csv.txt", "Rename 'train_labels.csv.txt' to train_labels.csv"),
        ("sample_submission.csv", "Sample_Submission.xlsx", "Save Sample_Submission.xlsx as sample_submission.csv"),
    ],
)
def test_another_name_of_a_part_is_to_be_changed(data: DataDir, name: str, other: str, words: str) -> None:
    (data.root / name).rename(data.root / other)
    with pytest.raises(UsageError) as caught:
        data.require()
    assert words in str(caught.value)


def test_patches_that_are_nowhere_are_downloaded_again(data: DataDir, tmp_path: Path) -> None:
    sorted(data.patches("train").glob("*.tif"))[0].unlink()
    with pytest.raises(PatchError, match="1 file missing .*Download the data again"):
        ensure_pack(data.patches("train"), read_labels(data.labels)[0], tmp_path / "cache")


def test_what_was_given_as_the_folder_is_named(data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "data.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "outer").mkdir()
    shutil.move(data.root, tmp_path / "outer" / "data")
    inner = tmp_path / "outer" / "data"
    for path, words in (
        (tmp_path / "nowhere", "nowhere: no such folder; .*Give that folder as --data DIR"),
        (inner / "train_labels.csv", "train_labels.csv: a file; the competition's folder has"),
        (tmp_path / "packed" / "data.zip", "data.zip: an archive; .*Unpack it, then give the folder"),
        (tmp_path / "outer", f"outer: no .* there; .*Give --data {inner}"),
        (inner / "train", f"train: no .* there; .*Give --data {inner}"),
        (tmp_path, f"{tmp_path.name}: no .* there; .*Give --data {inner}"),
        (tmp_path / "packed", "no train_labels.csv, sample_submission.csv, train, test there; .*Unpack data.zip there"),
    ):
        with pytest.raises(UsageError, match=words):
            DataDir(path).require()
    with pytest.raises(UsageError, match="a web address; .*claris fetch"):
        DataDir(Path("https://www.kaggle.com/c/histopathologic-cancer-detection")).require()
    shutil.rmtree(inner / "test")
    (inner / "test.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="data: no test there; .*Unpack test.zip there"):
        DataDir(inner).require()
    (inner / "test").write_text("x")
    with pytest.raises(UsageError, match="data: no test there"):
        DataDir(inner).require()
