"""Test a disk that is full, read-only or broken: one line, and nothing is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from claris_kaggle.data.patches import _encode_tiff, read_patch
from tests.support.world import Place, drop_pack, kept, one_line

Call = Callable[..., tuple[int, str, str]]


WRITERS = ("pack", "folds", "train", "predict", "ensemble", "report")
NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)
# A report is computed whole before its first write, and takes longer than all other verbs together.
FAILURES = [
    pytest.param(verb, number, marks=[pytest.mark.slow] if verb == "report" and number != errno.ENOSPC else [])
    for verb in WRITERS
    for number in NUMBERS
]


@pytest.mark.parametrize(("verb", "number"), FAILURES)
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
    assert {errno.ENOSPC: "no space left", errno.EIO: "error"}.get(number, "permission denied") in one_line(said)
    after = kept(place.root)
    lost = {path for path in before if after.get(path) != before[path]}
    assert lost <= ({f"run/fold0/{name}" for name in ("predictions.json",)} if verb == "predict" else set())
    assert not [path for path in after if ".part" in path]


def test_decoding_and_encoding_a_patch_gives_the_same_bytes(place: Place) -> None:
    assert place.patch().read_bytes() == _encode_tiff(read_patch(place.patch()))
