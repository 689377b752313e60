"""Mark every test of this folder `gpu`, and skip it where there is no CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    missing = not torch.cuda.is_available()
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        # The versions of torch and its compiler are the machine's own: their deprecations are shown, not errors.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if missing:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))
