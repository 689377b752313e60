"""One rank, started by test_kills. The last rank is killed; the others would run for ten minutes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(folder: Path) -> None:
    rank, others = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
    if rank == others:
        while len([*folder.glob("[0-9]")]) < others:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(rank)).write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
