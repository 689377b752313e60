"""Compare packing with verified ids to a loop over Pillow that verifies nothing.

python -m benchmarks.packing
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.processes import measure_command
from benchmarks.timing import QUICK, Result, interleave, publish, rate_of
from claris_kaggle.core.errors import format_count
from claris_kaggle.data.pack import ensure_pack
from claris_kaggle.data.patches import PATCH_SHAPE, _encode_tiff, patch_id

FILES, ALL_FILES = 400 if QUICK else 40_000, 277_483
PACK_SCRIPT = """
import sys
from pathlib import Path
from claris_kaggle.data.pack import _write_pixels
source, target, jobs = sys.argv[1:]
_write_pixels(Path(source), sys.stdin.read().split(), Path(target), int(jobs))
"""


def write_files(folder: Path) -> list[str]:
    """Write patches of noise, named by their ids, and return the ids."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    header = _encode_tiff(np.zeros(PATCH_SHAPE, dtype=np.uint8))[: -96 * 96 * 3]
    ids = []
    for _ in range(FILES):
        pixels = generator.integers(0, 256, PATCH_SHAPE, dtype=np.uint8)
        ids.append(patch_id(pixels))
        (folder / f"{ids[-1]}.tif").write_bytes(header + pixels.tobytes())
    return ids


def decode_with_pillow(folder: Path, ids: list[str], target: Path) -> None:
    """Decode one file after another and write it to a memory map."""
    array = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(ids), *PATCH_SHAPE))
    for row, name in enumerate(ids):
        with Image.open(folder / f"{name}.tif") as image:
            array[row] = np.asarray(image.convert("RGB"))
    array.flush()


def pack_from_scratch(folder: Path, ids: list[str], cache: Path, jobs: int) -> None:
    """Pack the files into an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    ensure_pack(folder, ids, cache, jobs)


def measure_peak_memory(folder: Path, ids: list[str], jobs: int) -> float:
    """Return the peak memory of all processes of packing, in 1e6 bytes, without the file cache of the system."""
    command = [sys.executable, "-c", PACK_SCRIPT, str(folder), str(folder.parent / "memory.npy"), str(jobs)]
    return measure_command(command, stdin="\n".join(ids), interval=0.01)[0].megabytes


def main() -> None:
    """Run the benchmark, print the result and save it."""
    cores = os.cpu_count() or 1

    def make_contender(jobs: int) -> Callable[[], float]:
        return rate_of(FILES, lambda: pack_from_scratch(folder, ids, root / "cache", jobs))

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "train"
        ids = write_files(folder)
        rates = interleave(
            {
                "Pillow, a plain loop, nothing verified": rate_of(
                    FILES, lambda: decode_with_pillow(folder, ids, root / "plain.npy")
                ),
                "claris pack, one process": make_contender(1),
                f"claris pack, {cores} processes": make_contender(0),
            },
            rounds=3,
        )
        shutil.rmtree(root / "cache")
        memory = {
            jobs: [measure_peak_memory(folder, ids[:count], jobs) for count in (FILES // 4, FILES)]
            for jobs in (1, cores)
        }
    seconds = {name: ALL_FILES / statistics.median(values) for name, values in rates.items()}
    publish(
        Result(
            "packing",
            f"packing, {FILES:,} files, each id verified by claris",
            "patches/s",
            rates,
            {
                f"all {ALL_FILES:,} files at these rates": ", ".join(
                    f"{name} {value:.0f} s" for name, value in seconds.items()
                ),
                f"peak memory without the file cache, {FILES // 4:,} and {FILES:,} files": ", ".join(
                    f"{format_count(jobs, 'process', 'processes')} {few:.0f} and {many:.0f} MB"
                    for jobs, (few, many) in memory.items()
                ),
            },
            ["Files and pack are in the system's cache; a cold disk or a network drive may be slower."],
        )
    )


if __name__ == "__main__":
    main()
