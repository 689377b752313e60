"""Test that files are complete or absent, and that a lock has one holder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claris_kaggle.core import files
from claris_kaggle.core.errors import DataError, DiskError, RunError
from tests.conftest import contents


@pytest.mark.parametrize("step", ["fsync", "replace", "touch"])
def test_a_failure_at_any_step_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")
    before = contents(tmp_path)

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(DiskError, match="no space left"):
        files.write_text(path, "new")
    assert contents(tmp_path) == before


def test_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom claris_kaggle.core.files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert path.read_text() == "old"


def test_a_full_device_is_one_clear_line() -> None:
    with pytest.raises(DiskError, match="no space left.*Free some space"), files.explain_disk_errors(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x" * 10)


def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="file"):
        files.write_text(tmp_path / "file" / "below", "text")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1'])
def test_damaged_json_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")


def test_files_and_folders_follow_the_umask_and_many_threads_leave_it_alone(tmp_path: Path) -> None:
    kept = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: files.write_text(tmp_path / f"{number}", "text"), range(200)))
        with files.create_folder(tmp_path / "folder"):
            pass
    finally:
        found = os.umask(kept)
    assert found == 0o027
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()} == {0o640}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_second_holder_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with (
        files.hold_lock(tmp_path / ".lock"),
        pytest.raises(RunError, match=f"in use by process {os.getpid()} on"),
        files.hold_lock(tmp_path / ".lock"),
    ):
        pass


@pytest.mark.parametrize("wait", [False, True])
def test_a_failure_leaves_neither_a_new_lock_nor_its_folder(tmp_path: Path, wait: bool) -> None:
    def fail(folder: Path, write: bool) -> None:
        with pytest.raises(ValueError, match="failed"), files.hold_lock(folder / ".lock", wait=wait):
            if write:
                files.write_text(folder / "kept", "text")
            raise ValueError("failed")

    fail(tmp_path / "runs" / "new", write=False)
    assert not (tmp_path / "runs").exists()
    fail(tmp_path / "runs" / "new", write=True)
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["kept"]
    (tmp_path / "own").mkdir()
    fail(tmp_path / "own", write=False)
    assert list((tmp_path / "own").iterdir()) == []


def test_who_waited_for_a_removed_lock_holds_a_new_one(tmp_path: Path) -> None:
    held = threading.Event()
    entered: list[bool] = []

    def wait_for_it() -> None:
        held.wait()
        with files.hold_lock(tmp_path / "new" / ".lock", wait=True):
            entered.append((tmp_path / "new" / ".lock").exists())

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    with pytest.raises(ValueError, match="failed"), files.hold_lock(tmp_path / "new" / ".lock", wait=True):
        held.set()
        time.sleep(0.2)  # so that the other thread waits
        raise ValueError("failed")
    waiting.join()
    assert entered == [True]


def test_the_lock_of_a_dead_process_does_not_block(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom claris_kaggle.core.files import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])):\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / ".lock")], timeout=60)
    with files.hold_lock(tmp_path / ".lock"):
        pass


def test_a_forked_process_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    with files.hold_lock(tmp_path / ".lock"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
        time.sleep(0.2)  # for the child to have begun
    try:
        with files.hold_lock(tmp_path / ".lock"):
            assert child.is_alive()
    finally:
        child.kill()


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    home = tmp_path / "folders"
    with pytest.raises(ValueError, match="half"), files.create_folder(home / "one") as aside:
        files.write_text(aside / "a", "a")
        raise ValueError("half")
    assert not home.exists()
    with files.create_folder(home / "one") as aside:
        files.write_text(aside / "a", "a")
        assert not (home / "one").exists()
    with pytest.raises(DiskError, match=r"already exists; nothing was changed"), files.create_folder(home / "one"):
        pass
    assert contents(home) == {"one/a": b"a"} and [path.name for path in home.iterdir()] == ["one"]


def test_a_link_to_an_empty_folder_is_followed_and_the_current_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    with files.create_folder(tmp_path / "link") as aside:
        files.write_text(aside / "a", "a")
    assert contents(here) == {"a": b"a"} and (tmp_path / "link").is_symlink()
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    for name in (Path(), here / "empty"):
        with pytest.raises(DiskError, match="the current folder; nothing was changed"), files.create_folder(name):
            pass


def test_a_name_too_long_is_explained_and_no_folder(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300) / "x.png"
    assert not files.is_folder(path)
    with pytest.raises(DiskError, match="File name too long"):
        files.sha256_file(path)
