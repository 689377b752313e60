"""The list of networks: what it says of each is what the network has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

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
    assert resnet.megaweights == pytest.approx(weights / 1e6)
    larger = list_networks("test_resnet", 200)[0]
    assert resnet.gflop is not None and larger.gflop == pytest.approx(4 * resnet.gflop, rel=0.1)
    with pytest.raises(UsageError, match="no network of timm is named 'nothing'"):
        list_networks("nothing")


def test_every_listed_network_is_known_to_timm() -> None:
    import timm

    assert all(timm.is_model(name) for name in catalogue._SUITABLE)


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
