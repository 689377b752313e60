"""Test the list of networks: each entry agrees with the network itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub.constants
import pytest

from benchmarks.networks import SIDES, count_row
from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError
from claris_kaggle.models import catalogue
from claris_kaggle.models.catalogue import list_networks
from claris_kaggle.models.factory import create_model

Call = Callable[..., tuple[int, str, str]]


def test_a_pattern_lists_networks_with_size_cost_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--timm--test_vit.r160_in1k"
    (place / "snapshots/abc").mkdir(parents=True)
    (place / "snapshots/abc/model.safetensors").touch()
    (place / "refs").mkdir()
    (place / "refs/main").write_text("abc")
    vit, resnet = (list_networks(name, 100)[0] for name in ("test_vit", "test_resnet"))
    assert (vit.name, vit.accepted, vit.gflop, vit.cached) == ("test_vit", False, None, True)
    assert (resnet.accepted, resnet.normalisation, resnet.cached) == (True, "inception", False)
    assert resnet.weights == "timm/test_resnet.r160_in1k"
    weights = sum(one.numel() for one in create_model("test_resnet").parameters())
    assert resnet.million_parameters == pytest.approx(weights / 1e6)
    larger = list_networks("test_resnet", 200)[0]
    assert resnet.gflop is not None and larger.gflop == pytest.approx(4 * resnet.gflop, rel=0.1)
    with pytest.raises(UsageError, match="no network of timm is named 'nothing'"):
        list_networks("nothing")


def test_the_table_has_every_listed_network() -> None:
    import timm

    table = catalogue._read_network_table()
    assert tuple(table) == catalogue._SUITABLE and all(timm.is_model(name) for name in table)
    assert {str(side) for side in SIDES} < set(table["densenet121"])


def test_a_row_of_the_table_is_what_timm_has(names: Sequence[str] = ("mobilenetv3_small_100",)) -> None:
    for name in names:
        counted, row = count_row(name, [192]), catalogue._read_network_table()[name]
        assert {key: row[key] for key in counted} == counted


@pytest.mark.slow
def test_every_row_of_the_table_is_what_timm_has() -> None:
    test_a_row_of_the_table_is_what_timm_has(catalogue._SUITABLE)


@pytest.mark.parametrize("side", [31, 385, 0, -1])
def test_the_sizes_are_those_that_training_takes(call: Call, side: int) -> None:
    code, _, said = call("models", "--resolution", side)
    assert code == 2 and f"--resolution is {side}; expected 32 to 384" in said
    if side:
        with pytest.raises(UsageError, match=rf"--resolution is {side}; expected 0 \(no resizing\), or 32 to 384"):
            TrainConfig(resolution=side)


def test_the_command_prints_a_table_or_json(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_SUITABLE", ("test_vit", "test_resnet"))
    code, shown, _ = call("models", "--resolution", 96)
    lines = shown.splitlines()
    assert code == 0 and lines[0].split()[0] == "network" and [line.split()[0] for line in lines[1:]] == [
        "test_vit", "test_resnet",
    ]  # fmt: skip
    code, shown, _ = call("models", "--resolution", 96, "--json")
    found = json.loads(shown)
    assert code == 0 and found["resolution"] == 96
    assert found["networks"] == [vars(row) for row in list_networks(side=96)]
