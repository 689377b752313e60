"""Fixtures of the system tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from claris_kaggle.cli.main import main
from claris_kaggle.core.paths import DataDir
from tests.conftest import TINY, build_once
from tests.support.world import Place


@pytest.fixture(scope="session")
def pristine(few: DataDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as it should be; copied for each fault."""

    def build(root: Path) -> None:
        place = Place(root)
        shutil.copytree(few.root, place.data.root)
        for verb in ("pack", "folds", "train", "predict", "ensemble"):
            extra = TINY if verb == "train" else []
            assert main([str(one) for one in [*place.command(verb), *extra]]) == 0

    return build_once(tmp_path_factory, "pristine", build)


@pytest.fixture
def place(pristine: Path, tmp_path: Path) -> Place:
    shutil.copytree(pristine, tmp_path / "world")
    return Place(tmp_path / "world")
