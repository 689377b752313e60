"""`python -m claris_kaggle`: the same as the command `claris`. torchrun uses this entry point."""

from __future__ import annotations

from claris_kaggle.cli.main import main
from claris_kaggle.core.time_limit import exit_process

if __name__ == "__main__":
    exit_process(main())
