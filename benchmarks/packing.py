"""The pack of many files, each id proved, against a plain loop over Pillow that proves nothing.

python -m benchmarks.packing
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import QUICK, Result, interleave, publish, rate_of
from claris_kaggle.data.pack import ensure_pack
from claris_kaggle.data.patches import PATCH_SHAPE, _encode_tiff, patch_id

FILES, WHOLE = 400 if QUICK else 40_000, 277_483
WRITE = """
import sys
from pathlib import Path
from claris_kaggle.data.pack import _write_pixels
source, target, jobs = sys.argv[1:]
_write_pixels(Path(source), sys.stdin.read().split(), Path(target), int(jobs))
"""


def write_files(folder: Path) -> list[str]:
    """Patches of noise under their ids."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    header = _encode_tiff(np.zeros(PATCH_SHAPE, dtype=np.uint8))[: -96 * 96 * 3]
    ids = []
    for _ in range(FILES):
        pixels = generator.integers(0, 256, PATCH_SHAPE, dtype=np.uint8)
        ids.append(patch_id(pixels))
        (folder / f"{ids[-1]}.tif").write_bytes(header + pixels.tobytes())
    return ids


def loop_over_pillow(folder: Path, ids: list[str], target: Path) -> None:
    """Each file decoded and written to the memory map, one after another."""
    array = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(ids), *PATCH_SHAPE))
    for row, name in enumerate(ids):
        with Image.open(folder / f"{name}.tif") as image:
            array[row] = np.asarray(image.convert("RGB"))
    array.flush()


def pack_anew(folder: Path, ids: list[str], cache: Path, jobs: int) -> None:
    """The pack from nothing."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    ensure_pack(folder, ids, cache, jobs)


def peak_memory(folder: Path, ids: list[str], jobs: int) -> int:
    """The most memory of their own that packing's processes took together, beside the system's cache, in bytes."""
    arguments = [str(folder), str(folder.parent / "memory.npy"), str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, *arguments], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    process.stdin.write("\n".join(ids))
    process.stdin.close()
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(own_memory, family(process.pid))))
        time.sleep(0.01)
    return most


def family(pid: int) -> list[int]:
    """A process and those that it started, and so on."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def own_memory(pid: int) -> int:
    """Memory of a process in bytes, mapped files aside; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Compare, print and keep."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "train"
        ids = write_files(folder)
        rates = interleave(
            {
                "Pillow, a plain loop, nothing verified": rate_of(
                    FILES, lambda: loop_over_pillow(folder, ids, root / "plain.npy")
                ),
                "claris pack, one process": rate_of(FILES, lambda: pack_anew(folder, ids, root / "cache", 1)),
                f"claris pack, {cores} processes": rate_of(FILES, lambda: pack_anew(folder, ids, root / "cache", 0)),
            },
            rounds=3,
        )
        shutil.rmtree(root / "cache")
        memory = {jobs: [peak_memory(folder, ids[:some], jobs) for some in (FILES // 4, FILES)] for jobs in (1, cores)}
    seconds = {name: WHOLE / statistics.median(values) for name, values in rates.items()}
    publish(
        Result(
            "packing",
            f"packing, {FILES:,} files, each id verified by claris",
            "patches/s",
            rates,
            {
                f"all {WHOLE:,} files at these rates": ", ".join(
                    f"{name} {value:.0f} s" for name, value in seconds.items()
                ),
                f"most memory beside the system's cache, {FILES // 4:,} and {FILES:,} files": ", ".join(
                    f"{jobs} process{'es' if jobs > 1 else ''} {few / 1e6:.0f} and {many / 1e6:.0f} MB"
                    for jobs, (few, many) in memory.items()
                ),
            },
            ["Files and pack are in the system's cache; a cold disk or a network drive may be slower."],
        )
    )


if __name__ == "__main__":
    main()
