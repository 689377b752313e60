"""`python -m claris_kaggle`: the same as the command `claris`. torchrun uses this entry point."""

from __future__ import annotations

import os
import sys

from claris_kaggle.cli.main import main


def _exit_process(code: int) -> None:
    """Exit the process. A rank under torchrun exits without the interpreter's clean-up.

    At this point all files are written and synced, and the process group is destroyed. But torch's gloo threads
    sometimes abort a process in its C++ destructors (about once in ten runs).
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit_process(main())
