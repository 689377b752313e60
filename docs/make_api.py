"""Writes the API reference from the docstrings: python docs/make_api.py build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import claris_kaggle

for name in claris_kaggle.__all__:
    getattr(claris_kaggle, name)  # public names are loaded when first asked for, and pdoc looks at what is there
pdoc.render.configure(docformat="google", footer_text=f"claris_kaggle {claris_kaggle.__version__}")
pdoc.pdoc("claris_kaggle", "!claris_kaggle.cli", "!claris_kaggle.__main__", output_directory=Path(sys.argv[1]))
