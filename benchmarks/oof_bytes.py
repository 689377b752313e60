"""Compare the OOF bytes of two checkouts: a change that must not alter results gives the same files on a CPU.

python -m benchmarks.oof_bytes BEFORE AFTER     # two checkouts, as from `git worktree add`

Each trains two folds of the tiny network on the same synthetic patches and predicts them. Prints the SHA-256 of each
file, and ends with exit code 1 if one differs.
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
    """Return the SHA-256 of predictions and weights that the code of a checkout makes in the folder."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    commands = [["-c", GENERATE], *(["-m", "claris_kaggle", *step.split()] for step in STEPS)]
    for arguments in commands:
        # -P: the folder of this process holds no code that is meant.
        subprocess.run([sys.executable, "-P", *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    files = sorted([*folder.glob("run/**/*.csv"), *folder.glob("run/**/model.safetensors")])
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files if path.name != "history.csv"}


def main() -> None:
    """Run both checkouts and compare."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before, after = (
            run_checkout(Path(name), Path(folder)) for name, folder in zip(sys.argv[1:], (one, other), strict=True)
        )
    for name in sorted(before.keys() | after.keys()):
        print(
            f"{after.get(name, 'missing'):64}  {'same' if before.get(name) == after.get(name) else 'DIFFERS'}  {name}"
        )
    raise SystemExit(before != after)


if __name__ == "__main__":
    main()
