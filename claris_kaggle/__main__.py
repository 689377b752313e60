"""`python -m claris_kaggle` is `claris`."""

import sys

from claris_kaggle.cli import main

if __name__ == "__main__":
    sys.exit(main())
