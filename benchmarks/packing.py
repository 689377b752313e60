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
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import Result, interleave, publish, rate_of
from claris_kaggle.pack import ensure_pack
from claris_kaggle.patches import SHAPE, encode, patch_id

FILES, WHOLE = 40_000, 277_483


def write_files(folder: Path) -> list[str]:
    """Patches of noise under their ids."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    header = encode(np.zeros(SHAPE, dtype=np.uint8))[: -96 * 96 * 3]
    ids = []
    for _ in range(FILES):
        pixels = generator.integers(0, 256, SHAPE, dtype=np.uint8)
        ids.append(patch_id(pixels))
        (folder / f"{ids[-1]}.tif").write_bytes(header + pixels.tobytes())
    return ids


def loop_over_pillow(folder: Path, ids: list[str], target: Path) -> None:
    """Each file decoded and written to the memory map, one after another."""
    array = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(ids), *SHAPE))
    for row, name in enumerate(ids):
        with Image.open(folder / f"{name}.tif") as image:
            array[row] = np.asarray(image.convert("RGB"))
    array.flush()


def pack_anew(folder: Path, ids: list[str], cache: Path, jobs: int) -> None:
    """The pack from nothing."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    ensure_pack(folder, ids, cache, jobs)


def peak_memory(folder: Path, cache: Path) -> int:
    """The most memory of its own that packing in one process took beside the mapped files, in bytes."""
    program = (
        "import sys, resource, os\nfrom pathlib import Path\nfrom claris_kaggle.pack import ensure_pack\n"
        f"source = Path({str(folder)!r})\nids = [name[:-4] for name in os.listdir(source)]\n"
        f"ensure_pack(source, ids, Path({str(cache)!r}), 1)\n"
        "rows = dict(line.split(':') for line in open('/proc/self/status') if ':' in line)\n"
        "print(int(rows['RssAnon'].split()[0]) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Compare, print and keep."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "train"
        ids = write_files(folder)
        rates = interleave(
            {
                "Pillow, a plain loop, nothing proved": rate_of(
                    FILES, lambda: loop_over_pillow(folder, ids, root / "plain.npy")
                ),
                "claris pack, one process": rate_of(FILES, lambda: pack_anew(folder, ids, root / "cache", 1)),
                f"claris pack, {cores} processes": rate_of(FILES, lambda: pack_anew(folder, ids, root / "cache", 0)),
            },
            rounds=3,
        )
        shutil.rmtree(root / "cache")
        memory = peak_memory(folder, root / "cache")
    seconds = {name: WHOLE / statistics.median(values) for name, values in rates.items()}
    publish(
        Result(
            "packing",
            f"packing, {FILES:,} files, each id proved by ours",
            "patches/s",
            rates,
            {
                f"all {WHOLE:,} files at these rates": ", ".join(
                    f"{name} {value:.0f} s" for name, value in seconds.items()
                ),
                "memory of its own, one process": f"{memory / 1e6:.0f} MB",
            },
            ["Files and pack lie in the system's cache; a cold disk or a network drive sets its own pace."],
        )
    )


if __name__ == "__main__":
    main()
