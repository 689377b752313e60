"""Test that a command that fails on its inputs leaves no new folder."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from claris_kaggle.core import platforms
from claris_kaggle.core.errors import KaggleError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.kaggle import api
from tests.conftest import TINY
from tests.support.world import one_line

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("export UNFINISHED --out new/export", "fold 1 not finished"),
        ("export RUN --out new/export --views 3", "--views is 3"),
        ("report UNFINISHED --out new/report.html", "no oof.csv there"),
        ("report RUN --out new/report.txt", "wrong file type"),
        ("ensemble RUN --data DATA --out new/s.csv --save-run RUN", "one of the runs to combine"),
        ("ensemble RUN UNFINISHED --data DATA --out new/s.csv --save-run new/run", "no oof.csv there"),
        (
            "ensemble RUN --data DATA --out new/s.csv --save-run FILE",
            "labels.csv: a file; expected a folder of its own",
        ),
        ("predict --data DATA --run new/run", "no such folder"),
        ("pack --data BAD --cache new/cache", "1 file missing"),
        ("folds --data DATA --out new/f.csv --k 1 --cache new/cache", "--k is 1"),
        ("demo --out new/demo --model nonsense", "unknown timm model"),
        ("demo --out new/demo --train 3", "expected at least 5 slides"),
        ("fetch --out new/data", "no token"),
        ("launch first --runs new/runs", "no token"),
        ("pull me/kernel --out new/output", "no push of me/kernel is recorded"),
        ("push train --record new/kernels.json", "no token"),
        ("push train --build-only new/kernel --user me --slug x", "invalid kernel name"),
        ("train --data DATA --folds FOLDS --run new/run --cache new/cache TINY --precision fp16", "no GPU here"),
        ("pack --data DAMAGED --cache new/cache", "damaged or cut off"),
        ("pack --data DAMAGED --cache .", "damaged or cut off"),
        ("folds --data DAMAGED --out new/f.csv --cache new/cache", "damaged or cut off"),
        ("train --data DAMAGED --folds FOLDS --run new/run --cache new/cache TINY", "damaged or cut off"),
        ("train --data DATA --folds FOLDS --run new/run --cache new/cache TINY --weights FILE", "no readable weights"),
        ("train --data DATA --folds FOLDS --run . --cache new/cache TINY --weights FILE", "no readable weights"),
        ("classify --run RUN FILE --html new/a.html --csv new/a.csv", "not a readable image"),
        ("classify --run RUN FILE FOLDS --html new/a.html --csv new/a.csv", "none of 2 images could be classified"),
    ],
)
def test_a_command_that_fails_on_its_inputs_leaves_no_folder(
    call: Call,
    finished: RunDir,
    generated: DataDir,
    fold_file: Path,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: str,
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise KaggleError("no token", "", "Log in")

    for name in ("_call_once", "_call_with_retries"):
        monkeypatch.setattr(api, name, refuse)
    run, bad = tmp_path / "unfinished", tmp_path / "bad"
    if "UNFINISHED" in command:
        shutil.copytree(finished.root, run)
        RunDir(run).fold(1).weights_manifest.unlink()
        RunDir(run).oof.unlink()
    if "DAMAGED" in command:
        damaged = Path(shutil.copytree(generated.root, tmp_path / "damaged"))
        first = sorted((damaged / "train").glob("*.tif"))[0]
        first.write_bytes(first.read_bytes()[:-100])
    if "BAD" in command:
        bad.mkdir()
        for path in generated.root.iterdir():
            (bad / path.name).symlink_to(path)
        (bad / "sample_submission.csv").unlink()
        (bad / "sample_submission.csv").write_text("id,label\nx,0\n")
    values = {"RUN": finished.root, "UNFINISHED": run, "DATA": generated.root, "BAD": bad, "FOLDS": fold_file}
    values |= {"FILE": generated.labels, "DAMAGED": tmp_path / "damaged"}
    arguments = [
        part for word in command.split() for part in (TINY if word == "TINY" else [str(values.get(word, word))])
    ]
    code, _, said = call(*arguments)
    assert code in (1, 2) and words in one_line(said)
    assert [path.name for path in here.iterdir()] == []


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("report RUN --out new/a/report.html", "report.html"),
        ("classify --run RUN IMAGE --csv new/a/found.csv --views 1", "found.csv"),
        ("export RUN --out new/a/export", "export.json"),
        ("ensemble RUN --data DATA --out s.csv --save-run new/run", "test.csv"),
        ("push train --build-only new/kernel --user me -- --model tiny --weights none", "train.py"),
    ],
)
def test_a_full_disk_leaves_no_folder_and_the_same_command_works_later(
    call: Call,
    finished: RunDir,
    generated: DataDir,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    file: str,
) -> None:
    whole = platforms.sync_file

    def fill(stream: BinaryIO) -> None:
        if file in stream.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(stream)

    image = sorted(generated.patches("test").glob("*.tif"))[0]
    values = {"RUN": finished.root, "DATA": generated.root, "IMAGE": image}
    arguments = [str(values.get(word, word)) for word in command.split()]
    with monkeypatch.context() as patch:
        patch.setattr(platforms, "sync_file", fill)
        code, _, said = call(*arguments)
    assert code == 1 and "no space left on the disk" in said
    assert not (here / "new").exists() or command.startswith("ensemble")
    assert call(*arguments)[0] == 0
