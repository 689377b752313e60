"""Compare the OOF predictions of two checkouts byte by byte. A change that must not alter results gives the same files.

python -m benchmarks.oof_bytes BEFORE AFTER     # two checkouts, as from `git worktree add`

Each checkout trains two folds of the tiny network on the same synthetic patches on a CPU and predicts them. Prints the
SHA-256 of each file. The exit code is 1 if a file differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from claris_kaggle.core.files import sha256_file

STEPS = (
    "folds --data data --out folds.csv --k 2 --cache cache",
    "train --data data --folds folds.csv --run run --model tiny --weights none --epochs 2 --batch-size 16 --threads 1 "
    "--workers 0 --nproc 1 --cache cache",
    "predict --data data --run run --workers 0 --nproc 1 --cache cache",
)
GENERATE = "import claris_kaggle as ck; from pathlib import Path; ck.generate(Path('data'), train=100, test=20, seed=3)"


def run_checkout(checkout: Path, folder: Path) -> dict[str, str]:
    """Run the code of a checkout in an empty folder, and return the SHA-256 of each file of predictions or weights."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    commands = [["-c", GENERATE], *(["-m", "claris_kaggle", *step.split()] for step in STEPS)]
    for arguments in commands:
        # -P: do not import from the current folder.
        subprocess.run([sys.executable, "-P", *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    files = sorted([*folder.glob("run/**/*.csv"), *folder.glob("run/**/model.safetensors")])
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files if path.name != "history.csv"}


def main() -> None:
    """Run both checkouts and compare their files."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        before, after = (
            run_checkout(Path(name), Path(folder)) for name, folder in zip(sys.argv[1:], (first, second), strict=True)
        )
    for name in sorted(before.keys() | after.keys()):
        print(
            f"{after.get(name, 'missing'):64}  {'same' if before.get(name) == after.get(name) else 'DIFFERS'}  {name}"
        )
    raise SystemExit(before != after)


if __name__ == "__main__":
    main()
