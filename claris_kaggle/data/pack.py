"""The cache of a split: all patches in one memory-mapped array, each verified against its id.

A pack is identified by its ids, not by a data folder: an id is the SHA-1 of the pixels, so equal ids always have equal
bytes. A pack is written to a temporary folder and renamed when it is complete. Commands that use a pack verify random
rows against their ids, and all rows if the file changed since it was last verified.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core import platforms
from claris_kaggle.core.console import Progress, log_info
from claris_kaggle.core.errors import DataError, DiskError, PatchError, format_bytes, format_count, name_few
from claris_kaggle.core.files import (
    create_folder,
    explain_disk_errors,
    hold_lock,
    read_json,
    sha256_bytes,
    write_json,
    write_text,
)
from claris_kaggle.data.folder_layout import _explain_layout, _explain_surplus
from claris_kaggle.data.parallel import _map_chunks
from claris_kaggle.data.patches import PATCH_BYTES, PATCH_SHAPE, patch_id, read_patch

_PACK_FORMAT = 1
_PACK_SPARE_BYTES = 64 << 20
_PIXELS, _STAMP = "pixels.npy", "verified.json"
_SAMPLED_ROWS = 1_000
_CACHE_HINT = "Give a folder that you can write to with --cache"
_DELETE_HINT = "Delete that folder and run the command again"


@dataclass(frozen=True)
class Pack:
    """The packed patches of one split.

    Attributes:
        ids: sorted ids; row i of `pixels` belongs to `ids[i]`.
        pixels: uint8 [N, 96, 96, 3] RGB, memory-mapped, read-only.
        folder: the folder of the pack.
    """

    ids: list[str]
    pixels: NDArray[np.uint8]
    folder: Path

    def __reduce__(self) -> tuple[Callable[[Path, list[str]], Pack], tuple[Path, list[str]]]:
        """Pickle the folder and ids only: another process opens the files again instead of copying all pixels."""
        return open_pack, (self.folder, self.ids)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each id, int64 [len(ids)].

        Raises:
            DataError: an id is not in the pack.
        """
        row_of = {name: row for row, name in enumerate(self.ids)}
        foreign = [name for name in ids if name not in row_of]
        if foreign:
            found = f"{self.folder}: {format_count(len(foreign), 'id')} not in the cache ({name_few(foreign)})"
            raise DataError(found, "", "Give the data folder that the cache was created from")
        return np.array([row_of[name] for name in ids], dtype=np.int64)


def pack_folder(cache: Path, split: str, ids: Sequence[str]) -> Path:
    """Return the folder of the pack of these ids in the cache; the order of the ids does not matter."""
    return cache / f"{split}-{_ids_digest(ids)[:16]}"


def _ids_digest(ids: Sequence[str]) -> str:
    """Return the SHA-256 of the sorted ids."""
    return sha256_bytes("\n".join(sorted(ids)).encode("utf-8"))


def _make_manifest(ids: Sequence[str]) -> dict[str, object]:
    """Return the content of the manifest of a pack of these ids, in any order."""
    return {"format": _PACK_FORMAT, "rows": len(ids), "ids_sha256": _ids_digest(ids)}


def ensure_pack(
    source: Path | str, ids: Sequence[str], cache: Path | str, jobs: int = 0, *, verify_all: bool = False
) -> Pack:
    """Return the verified pack of these ids; create it from the source folder if it does not exist.

    A new pack is verified row by row. A pack that was verified before, and whose file has the same size, modification
    time and inode since then, is verified by 1,000 random rows.

    Args:
        source: folder of `<id>.tif` files; its name (train or test) is part of the pack's name.
        ids: ids in any order; the pack sorts them.
        cache: folder of packs.
        jobs: number of reading processes; 0 uses one per core if there are many patches.
        verify_all: True verifies all rows of an existing pack.
    Returns:
        The pack.
    Raises:
        PatchError: files are missing, surplus or damaged, or their pixels do not match the id.
        DiskError: no space, or no permission to write to the cache.
    """
    source, cache = Path(source), Path(cache)
    folder = pack_folder(cache, source.name, ids)
    _require_writable(cache)
    with hold_lock(cache / f".{folder.name}.lock", wait=True):
        if folder.exists():
            try:
                pack = open_pack(folder, ids)
                if verify_all or not _passes_sample(pack):
                    _verify_pack(pack, jobs)
                    _write_stamp(folder)
                return pack
            except (DataError, DiskError) as error:
                log_info(f"{error.found}: creating the cache again")
        _build_pack(source, sorted(ids), folder, jobs)
    return open_pack(folder, ids)


def open_pack(folder: Path, ids: Sequence[str]) -> Pack:
    """Return the pack in the folder. Checks only its manifest and size; for packs that another process verified.

    Raises:
        DataError: the pack contains other ids, has another format, or is cut off.
        DiskError: the pack does not exist.
    """
    manifest, expected = read_json(folder / "manifest.json"), _make_manifest(ids)
    if {name: manifest.get(name) for name in expected} != expected:
        raise DataError(f"{folder}: cache of different patches or of another claris version", "", _DELETE_HINT)
    try:
        with explain_disk_errors(folder):
            pixels = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False)
    except DiskError:
        raise
    except Exception as error:  # NumPy raises various errors for damaged headers
        raise DataError(f"{folder}: pixels.npy is damaged or cut off", "", _DELETE_HINT) from error
    if pixels.shape != (len(ids), *PATCH_SHAPE) or pixels.dtype != np.uint8:
        raise DataError(f"{folder}: pixels.npy holds {pixels.dtype} {pixels.shape}", "", _DELETE_HINT)
    return Pack(sorted(ids), pixels, folder)


def _passes_sample(pack: Pack) -> bool:
    """Return True if the file is the one that was verified before, and random rows of it match their ids."""
    try:
        if read_json(pack.folder / _STAMP) != _describe_file(pack.folder):
            return False
    except (DataError, DiskError):  # no stamp, or a damaged one
        return False
    rows = sorted(random.sample(range(len(pack.ids)), min(_SAMPLED_ROWS, len(pack.ids))))
    return _match_ids(pack, rows)


def _match_ids(pack: Pack, rows: Sequence[int]) -> bool:
    """Return True if the SHA-1 of each of these rows is its id.

    Reads only these rows. A memory map would also read the pages around them, which takes seconds from a disk.
    """
    path = pack.folder / _PIXELS
    offset = np.load(path, mmap_mode="r", allow_pickle=False).offset
    with explain_disk_errors(path), path.open("rb", buffering=0) as stream:
        for row in rows:
            stream.seek(offset + row * PATCH_BYTES)
            if patch_id(np.frombuffer(stream.read(PATCH_BYTES), np.uint8)) != pack.ids[row]:
                return False
    return True


def _describe_file(folder: Path) -> dict[str, object]:
    """Return properties of the pixel file that change when it is written again or replaced."""
    status = (folder / _PIXELS).stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "inode": status.st_ino}


def _write_stamp(folder: Path) -> None:
    """Record the properties of the verified file. In a read-only folder the next command verifies all rows again."""
    with contextlib.suppress(DiskError):
        write_json(folder / _STAMP, _describe_file(folder))


def _verify_pack(pack: Pack, jobs: int) -> None:
    """Check that the SHA-1 of every row is its id.

    Raises:
        DataError: rows are damaged; the message names their ids.
    """
    find_damaged = functools.partial(_find_damaged, pack.folder / _PIXELS)
    with Progress(f"verify {pack.folder.name}", len(pack.ids)) as progress:
        damaged = [name for part in _map_chunks(find_damaged, pack.ids, jobs, progress) for name in part]
    if damaged:
        count = format_count(len(damaged), "patch", "patches")
        found = f"{pack.folder}: {count} damaged on disk ({name_few(sorted(damaged))})"
        raise DataError(found, "", _DELETE_HINT)


def _find_damaged(path: Path, start: int, names: Sequence[str]) -> list[str]:
    """Return the names whose rows, starting at `start`, do not match their ids."""
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    return [name for row, name in enumerate(names, start) if patch_id(pixels[row]) != name]


def _build_pack(source: Path, ids: list[str], folder: Path, jobs: int) -> None:
    """Decode every file once into a temporary folder, then rename the folder."""
    _require_files(source, ids)
    _require_space(folder.parent, len(ids) * PATCH_BYTES)
    with explain_disk_errors(folder):
        for leftover in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(leftover)  # of a killed process; this process holds the lock
    with create_folder(folder) as temporary:
        _write_pixels(source, ids, temporary / _PIXELS, jobs)
        write_text(temporary / "ids.txt", "\n".join(ids) + "\n")
        write_json(temporary / "manifest.json", _make_manifest(ids))
        _write_stamp(temporary)
        if folder.exists():
            shutil.rmtree(folder)


def _write_pixels(source: Path, ids: list[str], path: Path, jobs: int) -> None:
    """Write uint8 [N, 96, 96, 3], with the verified pixels of `ids[i]` in row i.

    Raises:
        PatchError: files are bad; the message describes the first one and counts the others.
    """
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(ids), *PATCH_SHAPE))
    with path.open("r+b") as stream:  # a full disk must raise here, not cause SIGBUS in a mapping
        platforms.allocate(stream, path.stat().st_size)

    fill = functools.partial(_fill_rows, source, path)
    with Progress(f"pack {source.name}", len(ids)) as progress:
        faults = [fault for part in _map_chunks(fill, ids, jobs, progress) for fault in part]
    if faults:
        more = (
            f" (and {format_count(len(faults) - 1, 'more bad file')}; claris check lists them)"
            if len(faults) > 1
            else ""
        )
        raise PatchError(f"{faults[0]}{more}", "", "No cache was written")
    log_info(f"{source.name}: packed {len(ids):,} patches at {progress.rate():,.0f} per second")
    with path.open("r+b") as stream:
        platforms.sync_file(stream)


def _fill_rows(source: Path, path: Path, start: int, names: Sequence[str]) -> list[str]:
    """Write the rows of these names, starting at `start`; return the errors of their files."""
    offset = np.load(path, mmap_mode="r", allow_pickle=False).offset
    faults = []
    # Uses write, not a memory map: a map causes a page fault every 4 KB, and is half as fast.
    with path.open("r+b", buffering=0) as stream:
        for row, name in enumerate(names, start):
            try:
                platforms.write_at(stream, offset + row * PATCH_BYTES, read_verified_patch(source, name).data)
            except PatchError as error:
                faults.append(str(error))
    return faults


def read_verified_patch(source: Path, name: str) -> NDArray[np.uint8]:
    """Return the pixels of `<name>.tif`, uint8 [96, 96, 3], verified against the id.

    Raises:
        PatchError: the file is missing, damaged, has another size or mode, or does not match the id.
    """
    path = f"{source}/{name}.tif"
    pixels = read_patch(path)
    if patch_id(pixels) != name:
        raise PatchError(
            f"{path}: the pixels do not match the id",
            "expected the SHA-1 of the pixels as the file name",
            "Download it again",
        )
    return pixels


def _list_patches(source: Path) -> set[str]:
    """Return the ids of all `.tif` files in the folder, without hidden ones such as the `._` files of macOS."""
    with explain_disk_errors(source), os.scandir(source) as entries:
        return {entry.name[:-4] for entry in entries if entry.name.endswith(".tif") and entry.name[0] != "."}


def _require_files(source: Path, ids: Sequence[str]) -> None:
    """Check that the folder has exactly one file for each id.

    Raises:
        PatchError: names missing and surplus files.
    """
    present = _list_patches(source)
    missing = sorted(set(ids) - present)
    surplus = sorted(present - set(ids))
    faults = []
    if missing:
        faults.append(f"{format_count(len(missing), 'file')} missing ({name_few(missing)})")
    if surplus:
        faults.append(f"{format_count(len(surplus), 'file')} without a row in the table ({name_few(surplus)})")
    if faults:
        expected = "each id needs one file, and each file one row"
        layout = _explain_layout(source, missing) if missing else _explain_surplus(surplus, missing)
        hint = f"{layout[0].upper()}{layout[1:]}" if layout else "Download the data again, or fix the table"
        raise PatchError(f"{source}: {', '.join(faults)}", expected, hint)


def _require_writable(cache: Path) -> None:
    """Raise if the folder of packs cannot be created or written, for example in a read-only home.

    Raises:
        DiskError: names the folder.
    """
    nearest = next(one for one in (cache, *cache.absolute().parents) if os.path.lexists(one))
    if not nearest.is_dir():
        raise DiskError(f"{nearest}: not a folder", "packed patches need a folder", _CACHE_HINT)
    if not os.access(nearest, os.W_OK):
        raise DiskError(f"{nearest}: not writable", "packed patches need a folder", _CACHE_HINT)


def _require_space(folder: Path, needed: int) -> None:
    """Raise if the disk does not have enough free space.

    Raises:
        DiskError: names the folder, the free space and the needed space.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _PACK_SPARE_BYTES:
        found = f"{folder}: {format_bytes(free)} free"
        raise DiskError(found, f"the cache needs {format_bytes(needed)}", "Give a folder on a larger disk with --cache")
