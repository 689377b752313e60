"""Fixtures of the tests of the Kaggle commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.core.paths import DataDir, RunDir

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submission(call: Call, finished: RunDir, generated: DataDir, tmp_path: Path) -> list[object]:
    """Return the arguments of `submit` for a new submission file."""
    out = tmp_path / "s.csv"
    assert call("ensemble", finished.root, "--data", generated.root, "--out", out)[0] == 0
    return ["submit", out, "--data", generated.root, "--ledger", tmp_path / "l.csv", "--poll", 0]
