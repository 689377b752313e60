"""`python -m claris_kaggle`: the same as `claris`, as torchrun starts it."""

from __future__ import annotations

import os
import sys

from claris_kaggle.cli.main import main


def _exit_process(code: int) -> None:
    """End this process; a rank without the interpreter's own clean-up.

    All files are written and synced by then, and the process group is gone, but torch's gloo
    threads now and then abort a process in its C++ destructors (seen once in some ten runs).
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit_process(main())
