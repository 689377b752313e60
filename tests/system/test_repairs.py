"""Test damaged files that a command can create again: it does, with the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.world import Place, cut, drop_pack, flip, to_nan

Call = Callable[..., tuple[int, str, str]]


# name: (the damage, the command that repairs it)
REPAIRED: dict[str, tuple[Callable[[Place], object], str]] = {
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


@pytest.mark.parametrize("name", REPAIRED)
def test_damaged_files_are_repaired(call: Call, place: Place, pristine: Path, name: str) -> None:
    spoil, verb = REPAIRED[name]
    spoil(place)
    code, _, said = call(*place.command(verb))
    assert code == 0, said
    for path in sorted(pristine.rglob("*")):
        if path.name in COMPARED:
            assert (place.root / path.relative_to(pristine)).read_bytes() == path.read_bytes(), path.name
