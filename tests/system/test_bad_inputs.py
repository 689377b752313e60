"""Test missing, damaged and foreign inputs: one line that says what to do, the right exit code, and nothing changed.

`benchmarks/reliability.py` writes the table of `docs/reliability.md` from a run of these tests.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.data.patches import read_patch
from tests.support.world import Place, cut, drop_pack, flip, kept, one_line, to_nan

Call = Callable[..., tuple[int, str, str]]


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
    "labels changed": (lambda p: replace(p.data.labels, ",1\n", ",0\n"), "train", 1, "1 label different from"),
    "labels repeated": (lambda p: repeat_line(p.data.labels), "folds", 1, "1 repeated id"),
    "sample submission cut off": (lambda p: cut(p.data.sample, 0.5), "predict", 1, "sample_submission.csv"),
    "sample submission empty": (lambda p: p.data.sample.write_bytes(b""), "ensemble", 1, "submission.csv: empty"),
    "slide map without an id": (
        lambda p: cut(p.data.root / "slides.csv", 0.5), "folds", 1, "slides.csv",
    ),
    "fold file missing": (lambda p: p.folds.unlink(), "train", 1, "folds.csv: file not found"),
    "fold file cut off": (lambda p: cut(p.folds), "train", 1, "folds.csv"),
    "fold file with a group on both sides": (
        lambda p: replace(p.folds, ",0\n", ",1\n"), "train", 1, "1 group in more than one fold",
    ),
    "config cut off": (lambda p: cut(p.run.config), "train", 1, "config.json: not a complete JSON"),
    "config missing": (lambda p: p.run.config.unlink(), "predict", 1, "no config.json there"),
    "config of another version": (
        lambda p: replace(p.run.config, '"seed"', '"seeds"'), "train", 1, "unknown fields seeds and missing",
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
        lambda p: [p.run.fold(fold).weights.unlink() for fold in (0, 1)], "predict", 1, "no finished fold",
    ),
    "fold predictions of a run missing": (lambda p: p.run.oof.unlink(), "ensemble", 1, "no oof.csv there"),
    "run predictions cut off": (lambda p: cut(p.run.oof), "ensemble", 1, "oof.csv"),
    "run test predictions cut off": (lambda p: cut(p.run.test), "report", 1, "test.csv"),
    "run predictions with NaN": (lambda p: to_nan(p.run.oof), "ensemble", 1, "1 probability NaN"),
    "run predictions of other folds": (
        lambda p: p.run.oof.write_text(move_one(p.run.oof.read_text())),
        "ensemble", 1, "different from the fold file",
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


def move_one(text: str) -> str:
    """One patch of fold 0 is in fold 1 in an OOF file."""
    return text.replace(",0,0.", ",1,0.", 1)


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_gives_a_one_line_error(call: Call, place: Place, name: str) -> None:
    spoil, verb, code, words = FAULTS[name]
    spoil(place)
    before = kept(place.root)
    found, shown, said = call(*place.command(verb))
    assert (found, shown) == (code, ""), said
    assert words in one_line(said)
    after = kept(place.root)
    assert {path: after.get(path) for path in before} == before
    assert not Path("/tmp/claris-evil-folder").exists()
