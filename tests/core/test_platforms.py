"""Test the commands as on macOS and Windows, simulated on Linux: without POSIX modules, and with their errors."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claris_kaggle.core import files, platforms
from claris_kaggle.core.errors import DiskError, KaggleError, UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.prepare import make_packs
from claris_kaggle.ensembling.ledger import read_ledger
from claris_kaggle.kaggle import kernel_output
from claris_kaggle.runtime import distributed
from tests.conftest import DEADLINE, ROOT, TINY, contents, environment
from tests.support.kaggle_double import FakeKaggle

Call = Callable[..., tuple[int, str, str]]
POOR = ROOT / "tests" / "support" / "like_windows"


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusals of Windows, and no waiting for them to pass."""
    monkeypatch.setattr(platforms, "_WINDOWS", True)
    monkeypatch.setattr(platforms, "_RETRY_PAUSES", (0.0, 0.0))


def run_poor(*command: object, cwd: Path, code: int = 0) -> str:
    """Run Python without what is of POSIX alone; returns its stdout."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env={**environment(), "PYTHONPATH": f"{POOR}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def claris_poor(*arguments: object, cwd: Path, code: int = 0) -> str:
    """Run the command without what is of POSIX alone; returns its stdout."""
    return run_poor("-m", "claris_kaggle", *arguments, cwd=cwd, code=code)


@pytest.mark.slow
def test_what_is_of_posix_alone_is_truly_taken_away(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom claris_kaggle.core import files, platforms\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd'):\n"
        "    try: __import__(name)\n    except ImportError: continue\n    sys.exit(name)\n"
        "assert not any(hasattr(os, name) for name in ('fork', 'posix_fallocate', 'pwrite', 'pread', 'O_DIRECTORY'))\n"
        "assert not hasattr(signal, 'SIGHUP') and not hasattr(platforms.signal, 'SIGKILL')\n"
        "assert not hasattr(files.os, 'getuid') and platforms._WINDOWS\n"
    )
    run_poor("-c", program, cwd=tmp_path)


@pytest.mark.slow
def test_the_whole_way_in_one_process_works_without_what_is_of_posix_alone(
    generated: DataDir, fold_file: Path, finished: RunDir, tmp_path: Path
) -> None:
    data, run = ["--data", generated.root], tmp_path / "run"
    packed, place = ["--cache", tmp_path / "cache"], ["--run", tmp_path / "run"]
    findings = json.loads(claris_poor("doctor", *data, "--json", cwd=tmp_path))["findings"]
    assert {"memory", "disk", "data"} <= {one["name"] for one in findings if one["state"] != "bad"}
    claris_poor("check", *data, cwd=tmp_path)
    claris_poor("pack", *data, *packed, cwd=tmp_path)
    made = ["--out", tmp_path / "three.csv", "--k", "3", "--slides", generated.root / "slides.csv"]
    claris_poor("folds", *data, *packed, *made, cwd=tmp_path)
    assert (tmp_path / "three.csv").read_bytes() == fold_file.read_bytes()
    claris_poor("train", *data, *packed, *place, "--folds", tmp_path / "three.csv", *TINY, cwd=tmp_path)
    claris_poor("predict", *data, *packed, *place, cwd=tmp_path)
    assert (run / "oof.csv").read_bytes() == finished.oof.read_bytes()
    claris_poor("ensemble", run, *data, "--out", tmp_path / "submission.csv", cwd=tmp_path)
    claris_poor("submission", "check", tmp_path / "submission.csv", *data, cwd=tmp_path)
    claris_poor("report", run, "--out", tmp_path / "report.html", *data, *packed, cwd=tmp_path)
    assert not [name for name in contents(tmp_path) if name.endswith((".part", ".holder"))]
    assert "Windows" in claris_poor("submission", "check", "nul.csv", *data, cwd=tmp_path, code=1)
    assert "--nproc 1" in claris_poor(
        "train", *data, *packed, "--folds", fold_file, "--run", tmp_path / "two", *TINY, "--nproc", 2,
        cwd=tmp_path, code=2,
    )  # fmt: skip
    assert not (tmp_path / "two" / "config.json").exists()


@pytest.mark.slow
def test_a_launch_works_without_what_is_of_posix_alone(trained: FakeKaggle, tmp_path: Path) -> None:
    claris_poor("launch", "first", "--poll", "0", "--epochs", "2", cwd=tmp_path)
    assert len(trained.submissions) == 1 and [len(versions) for versions in trained.kernels.values()] == [1]
    assert [line.public for line in read_ledger(tmp_path / "submissions" / "ledger.csv")] == ["0.97123"]


@pytest.mark.slow
def test_loader_processes_that_are_not_forked_give_the_same_bytes(
    generated: DataDir, fold_file: Path, cache: Path, tmp_path: Path
) -> None:
    program = (
        "import multiprocessing, sys\nfrom claris_kaggle.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n    sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "spawned.py").write_text(program, "utf-8")
    data = ["--data", generated.root, "--cache", cache, "--folds", fold_file, *TINY, "--epochs", "1", "--fold", "0"]
    for workers in (0, 1):
        where = ["train", *data, "--run", tmp_path / f"run{workers}", "--workers", workers]
        done = subprocess.run(
            [sys.executable, tmp_path / "spawned.py", *map(str, where)], env=environment(), capture_output=True,
            text=True, timeout=DEADLINE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    plain, spawned = (RunDir(tmp_path / f"run{workers}").fold(0).weights.read_bytes() for workers in (0, 1))
    assert plain == spawned


def test_a_pack_that_is_sent_to_another_process_is_opened_there_and_not_copied(
    generated: DataDir, tmp_path: Path
) -> None:
    pack = make_packs(generated, tmp_path)[0]
    sent = pickle.dumps(pack)
    assert len(sent) < pack.pixels.nbytes / 20
    received = pickle.loads(sent)
    assert received.ids == pack.ids and np.array_equal(received.pixels, pack.pixels)
    assert isinstance(received.pixels, np.memmap)


def test_a_file_that_another_process_has_open_is_replaced_once_it_lets_go(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refusals = Path.replace, [1, 2]

    def busy(path: Path, target: Path) -> Path:
        if refusals:
            refusals.pop()
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return replace(path, target)

    files.write_text(tmp_path / "file", "old")
    monkeypatch.setattr(Path, "replace", busy)
    files.write_text(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": b"new"} and refusals == []


def sharing_violation() -> PermissionError:
    """What Windows raises for a file that another process has open."""
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = 32  # type: ignore[attr-defined]
    return error


def test_a_file_that_stays_open_elsewhere_is_one_clear_line_and_stays(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(tmp_path / "file", "old")

    def busy(path: Path, target: Path) -> None:
        raise sharing_violation()

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(
        DiskError, match=r"file: open in another program; nothing was changed. Close the file in that program"
    ):
        files.write_text(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("name", ["con", "NUL.csv", "com1.json", "a:b.csv", "what?.csv", "dot.", "lpt¹.txt", "n" * 300])
def test_a_name_that_windows_does_not_take_is_refused_there_before_anything_is_written(
    windows: None, tmp_path: Path, name: str
) -> None:
    with pytest.raises(DiskError, match=r"Windows.*Give another name"):
        files.write_text(tmp_path / name, "text")
    with pytest.raises(DiskError, match="Windows"), files.create_folder(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_names_of_windows_devices_are_plain_names_elsewhere(tmp_path: Path) -> None:
    files.write_text(tmp_path / "con.csv", "text")
    assert platforms.is_safe_name("run/con.csv") and contents(tmp_path) == {"con.csv": b"text"}


@pytest.mark.parametrize("name", ["C:evil.csv", "C:/evil.csv", "run/nul", "run/oof.csv:hidden", "a/aux.txt"])
def test_an_output_listed_by_kaggle_never_leads_out_of_the_folder_on_windows(windows: None, name: str) -> None:
    with pytest.raises(KaggleError, match="expected a name inside the folder"):
        kernel_output._require_safe_name(name)


def test_an_empty_folder_is_replaced_also_where_a_rename_cannot_do_that(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    (tmp_path / "empty").mkdir()
    with files.create_folder(tmp_path / "empty") as aside:
        files.write_text(aside / "a", "a")
    assert contents(tmp_path) == {"empty/a": b"a"}
    with pytest.raises(DiskError, match="already exists; nothing was changed"), files.create_folder(tmp_path / "empty"):
        pass
    assert contents(tmp_path) == {"empty/a": b"a"}


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"state")

    def refuse(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    platforms.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"state"


class Hesitant(io.FileIO):
    """A file that takes at most 1000 bytes at a time, and in the end none."""

    room = 5000

    def write(self, content: Any) -> int:
        taken = super().write(memoryview(content)[: min(1000, self.room)])
        self.room -= taken
        return taken


def test_a_write_is_whole_or_an_error(tmp_path: Path) -> None:
    content = np.arange(4500, dtype=np.uint8).reshape(9, 500)
    with Hesitant(tmp_path / "file", "w+") as stream:
        platforms.write_at(stream, 100, content.data)
        with pytest.raises(OSError, match="No space left"):
            platforms.write_at(stream, 0, content.data)
    assert (tmp_path / "file").read_bytes()[1100:4600] == content.tobytes()[1000:]


def test_a_console_of_few_characters_never_fails(handful: DataDir, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "claris_kaggle", "pack", "--data", handful.root, "--cache", tmp_path / "пять"]
    done = subprocess.run(
        command, env={**environment(), "PYTHONIOENCODING": "cp1252"},
        capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(rb"\u043f\u044f\u0442\u044c") == len([*(tmp_path / "пять").glob("*-*/ids.txt")]) == 2


def test_the_way_to_the_token_is_said_as_each_system_writes_it(tmp_path: Path) -> None:
    told = run_poor("-c", "from claris_kaggle.kaggle import api as kaggle_api; print(kaggle_api._LOGIN)", cwd=tmp_path)
    assert "%USERPROFILE%/.kaggle/" in told


def test_a_holder_that_has_gone_leaves_no_name_behind(tmp_path: Path) -> None:
    with files.hold_lock(tmp_path / ".lock"):
        assert str(os.getpid()) in (tmp_path / ".lock.holder").read_text("utf-8")
    assert not (tmp_path / ".lock.holder").exists()


def test_several_processes_are_refused_where_torch_has_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "SUPPORTS_DDP", False)
    assert distributed.choose_nproc(0) == distributed.choose_nproc(1) == 1
    with pytest.raises(UsageError, match="several processes need Linux or macOS"):
        distributed.choose_nproc(2)


@pytest.mark.parametrize("number", [os.getpid(), os.getppid()], ids=["own", "parent"])
def test_a_living_process_is_seen(number: int) -> None:
    assert platforms._is_alive(number)


def test_a_process_that_has_ended_is_not_alive() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(DEADLINE)
    assert not platforms._is_alive(ended.pid)


def test_the_memory_of_this_machine_is_known(call: Call) -> None:
    total = platforms.total_memory()
    assert total is not None and total > 1 << 28
    assert f"{total / 1e9:.1f} GB" in call("doctor")[1]
