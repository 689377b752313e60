"""Each fault that a stage can meet: one line that says what to do, the right exit code, and nothing lost.

`benchmarks/reliability.py` writes the table of `docs/reliability.md` from a run of these tests.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.patches import _encode_tiff, read_patch
from tests.conftest import TINY, contents

Call = Callable[..., tuple[int, str, str]]


@dataclass
class Place:
    """A whole small world: data, packs, folds, a finished run, a submission."""

    root: Path

    @property
    def data(self) -> DataDir:
        return DataDir(self.root / "data")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def folds(self) -> Path:
        return self.root / "folds.csv"

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / "run")

    @property
    def submission(self) -> Path:
        return self.root / "submission.csv"

    def patch(self, split: str = "train", number: int = 3) -> Path:
        return sorted(self.data.patches(split).glob("*.tif"))[number]

    def pack(self, split: str = "train") -> Path:
        return next(path for path in self.cache.iterdir() if path.name.startswith(f"{split}-"))

    def command(self, verb: str) -> list[object]:
        """The verb as it was typed when this world was made."""
        data, cache, run = ["--data", self.data.root], ["--cache", self.cache], ["--run", self.run.root]
        return {
            "check": ["check", *data, "--slides", self.data.root / "slides.csv"],
            "pack": ["pack", *data, *cache],
            "folds": [
                "folds", *data, *cache, "--out", self.folds, "--k", 2, "--slides", self.data.root / "slides.csv"
            ],
            "train": ["train", *data, *cache, *run, "--folds", self.folds],
            "predict": ["predict", *data, *cache, *run],
            "ensemble": ["ensemble", self.run.root, *data, "--out", self.submission],
            "submission": ["submission", "check", self.submission, *data],
            "report": ["report", self.run.root, "--out", self.root / "report.html"],
        }[verb]  # fmt: skip


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as it should be; copied for each fault."""
    from claris_kaggle.cli.main import main
    from claris_kaggle.data.synthetic import generate

    place = Place(tmp_path_factory.mktemp("pristine"))
    generate(place.data.root, train=60, test=12, slides=6)
    for verb in ("pack", "folds", "train", "predict", "ensemble"):
        extra = TINY if verb == "train" else []
        assert main([str(one) for one in [*place.command(verb), *extra]]) == 0
    return place.root


@pytest.fixture
def place(pristine: Path, tmp_path: Path) -> Place:
    shutil.copytree(pristine, tmp_path / "world")
    return Place(tmp_path / "world")


def cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def flip(path: Path, where: float = 0.7) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(bytes(content))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def unfinish(place: Place, *, checkpoint: Callable[[Path], object]) -> None:
    """Take the seal off fold 0 and spoil its checkpoints."""
    fold = place.run.fold(0)
    fold.weights_manifest.unlink()
    for path in fold.root.glob("last.ckpt*"):
        checkpoint(path)


class Evil:
    """Runs code when it is unpickled carelessly."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/claris-evil-folder",)


def other_patch(place: Place) -> None:
    place.patch(number=3).write_bytes(place.patch(number=4).read_bytes())


def grey_patch(place: Place) -> None:
    from PIL import Image

    Image.fromarray(read_patch(place.patch())).convert("L").save(place.patch())


def drop_pack(place: Place) -> None:
    shutil.rmtree(place.pack())


def with_pack_dropped(spoil: Callable[[Place], object]) -> Callable[[Place], None]:
    """The fault, where the pack has to be made again."""

    def both(place: Place) -> None:
        drop_pack(place)
        spoil(place)

    return both


# name: (what goes wrong, the verb that meets it, exit code, words of the message)
FAULTS: dict[str, tuple[Callable[[Place], object], str, int, str]] = {
    "patch missing": (with_pack_dropped(lambda p: p.patch().unlink()), "train", 1, "1 file missing"),
    "patch cut off": (with_pack_dropped(lambda p: cut(p.patch())), "train", 1, "damaged or cut off"),
    "patch with a flipped bit": (with_pack_dropped(lambda p: flip(p.patch())), "train", 1, "do not match the id"),
    "patch of another id": (with_pack_dropped(other_patch), "pack", 1, "do not match the id"),
    "patch in grey": (with_pack_dropped(grey_patch), "pack", 1, "mode L"),
    "patch without a row": (
        with_pack_dropped(lambda p: (p.data.patches("train") / f"{'f' * 40}.tif").write_bytes(b"")), "pack", 1,
        "1 file without a row",
    ),
    "patch that is a page": (with_pack_dropped(lambda p: p.patch().write_text("<html>")), "pack", 1, "damaged"),
    "labels missing": (lambda p: p.data.labels.unlink(), "train", 2, "no train_labels.csv there"),
    "labels cut off": (lambda p: cut(p.data.labels, 0.5), "train", 1, "train_labels.csv"),
    "labels of 2": (lambda p: replace(p.data.labels, ",1\n", ",2\n"), "train", 1, "1 label other than 0 and 1"),
    "labels changed": (lambda p: replace(p.data.labels, ",1\n", ",0\n"), "train", 1, "1 label other than in"),
    "labels repeated": (lambda p: repeat_line(p.data.labels), "folds", 1, "1 repeated id"),
    "sample submission cut off": (lambda p: cut(p.data.sample, 0.5), "predict", 1, "sample_submission.csv"),
    "sample submission empty": (lambda p: p.data.sample.write_bytes(b""), "ensemble", 1, "submission.csv: empty"),
    "slide map without an id": (
        lambda p: cut(p.data.root / "slides.csv", 0.5), "folds", 1, "slides.csv",
    ),
    "fold file missing": (lambda p: p.folds.unlink(), "train", 1, "folds.csv: no such file"),
    "fold file cut off": (lambda p: cut(p.folds), "train", 1, "folds.csv"),
    "fold file with a group on both sides": (
        lambda p: replace(p.folds, ",0\n", ",1\n"), "train", 1, "1 group in more than one fold",
    ),
    "config cut off": (lambda p: cut(p.run.config), "train", 1, "config.json: not a whole JSON"),
    "config missing": (lambda p: p.run.config.unlink(), "predict", 1, "no config.json there"),
    "config of another version": (
        lambda p: replace(p.run.config, '"seed"', '"seeds"'), "train", 1, "unknown or missing fields seed, seeds",
    ),
    "fold copy of the run changed": (
        lambda p: p.run.folds.write_text(swap_folds(p.run.folds.read_text())), "predict", 1, "not the fold file",
    ),
    "checkpoints cut off": (lambda p: unfinish(p, checkpoint=cut), "train", 1, "damaged or cut off"),
    "checkpoints with a flipped bit": (lambda p: unfinish(p, checkpoint=flip), "train", 1, "damaged or cut off"),
    "checkpoints that run code": (
        lambda p: unfinish(p, checkpoint=lambda path: path.write_bytes(pickle.dumps(Evil()) * 9)), "train", 1,
        "damaged or cut off",
    ),
    "all weights missing": (
        lambda p: [p.run.fold(fold).weights.unlink() for fold in (0, 1)], "predict", 1, "no finished fold there",
    ),
    "fold predictions of a run missing": (lambda p: p.run.oof.unlink(), "ensemble", 1, "no oof.csv there"),
    "run predictions cut off": (lambda p: cut(p.run.oof), "ensemble", 1, "oof.csv"),
    "run test predictions cut off": (lambda p: cut(p.run.test), "report", 1, "test.csv"),
    "run predictions with NaN": (lambda p: to_nan(p.run.oof), "ensemble", 1, "1 probability NaN"),
    "run predictions of other folds": (
        lambda p: p.run.oof.write_text(swap_column(p.run.oof.read_text())), "ensemble", 1, "than in the fold file",
    ),
    "submission cut off": (lambda p: cut(p.submission), "submission", 1, "submission.csv"),
    "submission constant": (lambda p: shutil.copy(p.data.sample, p.submission), "submission", 1, "every value is 0"),
}  # fmt: skip


def repeat_line(path: Path) -> None:
    text = path.read_text()
    path.write_text(text + text.splitlines()[1] + "\n")


def swap_folds(text: str) -> str:
    """Fold 0 for fold 1 and the other way round."""
    return text.replace(",0\n", ",x\n").replace(",1\n", ",0\n").replace(",x\n", ",1\n")


def swap_column(text: str) -> str:
    """The same in an OOF file."""
    return text.replace(",0,0.", ",x,0.").replace(",1,0.", ",0,0.").replace(",x,0.", ",1,0.")


def to_nan(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ",nan"
    path.write_text("\n".join(lines) + "\n")


def kept(root: Path) -> dict[str, bytes]:
    """Every file but the locks, which hold no more than who holds them."""
    return {name: value for name, value in contents(root).items() if not name.endswith(".lock")}


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("claris: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    return lines[0]


@pytest.mark.parametrize("name", FAULTS)
def test_fault(call: Call, place: Place, name: str) -> None:
    spoil, verb, code, words = FAULTS[name]
    spoil(place)
    before = kept(place.root)
    found, shown, said = call(*place.command(verb))
    assert (found, shown) == (code, ""), said
    assert words in one_line(said)
    after = kept(place.root)
    assert {path: after.get(path) for path in before} == before
    assert not Path("/tmp/claris-evil-folder").exists()


# name: (what goes wrong, the verb that mends it by itself)
MENDED: dict[str, tuple[Callable[[Place], object], str]] = {
    "pack missing": (drop_pack, "train"),
    "pack cut off": (lambda p: cut(p.pack() / "pixels.npy"), "train"),
    "pack with a flipped bit": (lambda p: flip(p.pack() / "pixels.npy"), "predict"),
    "pack manifest cut off": (lambda p: cut(p.pack() / "manifest.json"), "pack"),
    "pack of other data": (
        lambda p: [shutil.rmtree(p.pack("train")), shutil.copytree(p.pack("test"), p.cache / "train-0123456789abcdef")],
        "pack",
    ),
    "newest checkpoint cut off": (
        lambda p: [p.run.fold(0).weights_manifest.unlink(), cut(p.run.fold(0).checkpoint)],
        "train",
    ),
    "weights with a flipped bit": (lambda p: flip(p.run.fold(1).weights), "train"),
    "seal missing": (lambda p: p.run.fold(1).weights_manifest.unlink(), "train"),
    "history cut off": (lambda p: [p.run.fold(1).weights_manifest.unlink(), cut(p.run.fold(1).history)], "train"),
    "fold OOF cut off": (lambda p: cut(p.run.fold(0).oof), "predict"),
    "fold test predictions missing": (lambda p: p.run.fold(1).test.unlink(), "predict"),
    "receipt missing": (lambda p: p.run.fold(0).predictions_manifest.unlink(), "predict"),
    "run predictions changed": (lambda p: to_nan(p.run.test), "predict"),
    "metrics cut off": (lambda p: cut(p.run.metrics), "predict"),
    "submission changed": (lambda p: cut(p.submission), "ensemble"),
}
COMPARED = ("oof.csv", "test.csv", "metrics.json", "submission.csv", "model.safetensors", "pixels.npy")


@pytest.mark.parametrize("name", MENDED)
def test_mended(call: Call, place: Place, pristine: Path, name: str) -> None:
    spoil, verb = MENDED[name]
    spoil(place)
    code, _, said = call(*place.command(verb))
    assert code == 0, said
    for path in sorted(pristine.rglob("*")):
        if path.name in COMPARED:
            assert (place.root / path.relative_to(pristine)).read_bytes() == path.read_bytes(), path.name


WRITERS = ("pack", "folds", "train", "predict", "ensemble", "report")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("verb", WRITERS)
def test_a_disk_that_fails_loses_nothing(
    call: Call, place: Place, monkeypatch: pytest.MonkeyPatch, verb: str, number: int
) -> None:
    """Full, read-only, forbidden, broken: the first write of each verb fails."""
    if verb == "pack":
        drop_pack(place)
    if verb == "folds":
        place.folds.unlink()
    if verb == "train":
        place.run.fold(0).weights_manifest.unlink()
        for path in place.run.fold(0).root.glob("last.ckpt*"):
            path.unlink()
    if verb == "predict":
        place.run.fold(0).predictions_manifest.unlink()
    before = kept(place.root)

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    code, _, said = call(*place.command(verb))
    monkeypatch.undo()
    assert code == 1, said
    assert {errno.ENOSPC: "no space left", errno.EIO: "error"}.get(number, "not allowed") in one_line(said)
    after = kept(place.root)
    lost = {path for path in before if after.get(path) != before[path]}
    assert lost <= ({f"run/fold0/{name}" for name in ("predictions.json",)} if verb == "predict" else set())
    assert not [path for path in after if ".part" in path]


def test_an_encoded_patch_is_what_it_was(place: Place) -> None:
    assert place.patch().read_bytes() == _encode_tiff(read_patch(place.patch()))
