"""Test packs: complete or absent, every row verified, outdated and damaged ones detected."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import DataError, DiskError, PatchError, TrainingError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data import pack as packs
from claris_kaggle.data.pack import ensure_pack, open_pack, pack_folder
from claris_kaggle.data.parallel import _map_chunks
from claris_kaggle.data.patches import _encode_tiff, patch_id, read_patch
from tests.conftest import contents, environment


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, list[str]]:
    folder = tmp_path / "train"
    folder.mkdir()
    generator = np.random.default_rng(0)
    ids = []
    for _ in range(20):
        pixels = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        ids.append(patch_id(pixels))
        (folder / f"{ids[-1]}.tif").write_bytes(_encode_tiff(pixels))
    return folder, ids


def test_a_pack_holds_each_patch_in_the_row_of_its_id(source: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = source
    pack = ensure_pack(folder, ids, tmp_path / "cache")
    assert pack.ids == sorted(ids) and pack.pixels.dtype == np.uint8
    for name, row in zip(ids, pack.rows(ids), strict=True):
        assert np.array_equal(pack.pixels[row], read_patch(folder / f"{name}.tif"))
    with pytest.raises(DataError, match="1 id not in the cache"):
        pack.rows(["nobody"])


def test_any_order_of_ids_and_number_of_workers_give_the_same_bytes(
    source: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, ids = source
    ensure_pack(folder, ids, tmp_path / "one", jobs=1)
    ensure_pack(folder, ids[::-1], tmp_path / "two", jobs=3)
    assert patch_files(tmp_path / "one") == patch_files(tmp_path / "two")


def patch_files(folder: Path) -> dict[str, bytes]:
    """Return the files of packs that depend only on the patches."""
    return {name: value for name, value in contents(folder).items() if not name.endswith((".lock", "verified.json"))}


def test_a_whole_pack_is_used_again(source: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = source
    pack = ensure_pack(folder, ids, tmp_path / "cache")
    stamp = (pack.folder / "pixels.npy").stat().st_mtime_ns
    shutil.rmtree(folder)
    again = ensure_pack(folder, ids, tmp_path / "cache")
    assert (again.folder / "pixels.npy").stat().st_mtime_ns == stamp


def flip_a_bit(folder: Path) -> None:
    with (folder / "pixels.npy").open("r+b") as stream:
        stream.seek(50_000)
        byte = stream.read(1)[0]
        stream.seek(50_000)
        stream.write(bytes([byte ^ 1]))


def truncate(folder: Path) -> None:
    path = folder / "pixels.npy"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        truncate,
        lambda folder: (folder / "pixels.npy").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text('{"format": 0}'),
        lambda folder: np.save(folder / "pixels.npy", np.zeros(3)),
        lambda folder: (folder / "pixels.npy").write_bytes(b"\x93NUMPY"),
    ],
)
def test_a_damaged_pack_is_noticed_and_made_again(
    source: tuple[Path, list[str]], tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ids = source
    pack = ensure_pack(folder, ids, tmp_path / "cache")
    whole = patch_files(pack.folder)
    damage(pack.folder)
    ensure_pack(folder, ids, tmp_path / "cache")
    assert "creating the cache again" in capsys.readouterr().err
    assert patch_files(pack.folder) == whole


def test_an_unchanged_pack_is_verified_by_random_rows(
    source: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damage does not change size and times of the file, like a disk error."""
    folder, ids = source
    monkeypatch.setattr(packs, "_SAMPLED_ROWS", 0)
    damaged = ensure_pack(folder, ids, tmp_path / "cache").folder
    before = (damaged / "pixels.npy").stat()
    flip_a_bit(damaged)
    os.utime(damaged / "pixels.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    wrong = contents(damaged)
    ensure_pack(folder, ids, tmp_path / "cache")
    assert contents(damaged) == wrong
    ensure_pack(folder, ids, tmp_path / "cache", verify_all=True)
    assert contents(damaged)["pixels.npy"] != wrong["pixels.npy"]
    flip_a_bit(damaged)
    (damaged / "verified.json").write_text("{", "utf-8")
    ensure_pack(folder, ids, tmp_path / "cache")
    assert contents(damaged)["pixels.npy"] != wrong["pixels.npy"]


def test_random_rows_find_damage(
    source: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ids = source
    damaged = ensure_pack(folder, ids, tmp_path / "cache").folder
    before = (damaged / "pixels.npy").stat()
    flip_a_bit(damaged)
    os.utime(damaged / "pixels.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    ensure_pack(folder, ids, tmp_path / "cache")
    assert "creating the cache again" in capsys.readouterr().err


def test_a_pack_of_other_patches_is_refused(source: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = source
    pack = ensure_pack(folder, ids, tmp_path / "cache")
    with pytest.raises(DataError, match="cache of different patches"):
        open_pack(pack.folder, [*ids[1:], "f" * 40])


def replace_patch(folder: Path, ids: list[str]) -> None:
    (folder / f"{ids[3]}.tif").write_bytes((folder / f"{ids[4]}.tif").read_bytes())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (replace_patch, "the pixels do not match the id"),
        (lambda folder, ids: (folder / f"{ids[3]}.tif").unlink(), "1 file missing"),
        (lambda folder, ids: (folder / f"{'e' * 40}.tif").write_bytes(b""), "1 file without a row"),
        (lambda folder, ids: (folder / f"{ids[3]}.tif").write_bytes(b"II*"), "damaged or cut off"),
    ],
)
def test_bad_files_are_named_and_leave_no_pack(
    source: tuple[Path, list[str]], tmp_path: Path, fault: Callable[[Path, list[str]], object], words: str
) -> None:
    folder, ids = source
    fault(folder, ids)
    with pytest.raises(PatchError, match=words):
        ensure_pack(folder, ids, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    source: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = source
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(packs.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r": 0\.0 MB free; the cache needs .*--cache"):
        ensure_pack(folder, ids, tmp_path / "cache")


def test_a_cache_that_cannot_be_created_is_asked_for_elsewhere(source: tuple[Path, list[str]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="/file: not a folder; packed patches need a folder.*--cache"):
        ensure_pack(*source, tmp_path / "file" / "cache")


def test_a_killed_packing_leaves_nothing_that_counts(source: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = source
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom claris_kaggle.data import pack\n"
        "whole = pack.write_json\n"
        "pack.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "source = Path(sys.argv[1])\n"
        "pack.ensure_pack(source, [path.stem for path in source.glob('*.tif')], Path(sys.argv[2]))\n"
    )
    cache = tmp_path / "cache"
    subprocess.run([sys.executable, "-c", program, str(folder), str(cache)], timeout=60, env=environment())
    assert not pack_folder(cache, "train", ids).exists()
    assert any(path.name.endswith(".part") for path in cache.iterdir())
    ensure_pack(folder, ids, cache)
    assert not any(path.name.endswith(".part") for path in cache.iterdir())


def test_two_packings_at_once_make_one_pack(generated: DataDir, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "claris_kaggle", "pack", "--data", generated.root, "--cache", tmp_path / "cache"]
    both = [subprocess.Popen(list(map(str, command)), env=environment()) for _ in range(2)]
    deadline = time.monotonic() + 120
    assert [one.wait(timeout=max(1, deadline - time.monotonic())) for one in both] == [0, 0]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_the_verb_prints_where_the_packs_are(
    call: Callable[..., tuple[int, str, str]], sample: DataDir, tmp_path: Path
) -> None:
    code, shown, _ = call("pack", "--data", sample.root, "--cache", tmp_path)
    assert code == 0
    assert [line.split("  ")[1] for line in shown.splitlines()] == ["1,200 patches", "318 patches"]


def kill_worker(start: int, names: Sequence[str]) -> int:
    """Kill the worker process, as the system does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return start


def test_a_worker_that_the_system_kills_is_named_with_a_way_on() -> None:
    with pytest.raises(TrainingError, match=r"pack train: the system killed a worker.*--jobs 1"):
        list(_map_chunks(kill_worker, ["a"] * 2000, 2, Progress("pack train", 2000)))
