"""Test `claris doctor`: each fault is named with a fix."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from claris_kaggle.cli.main import _find_missing
from claris_kaggle.core.paths import DataDir

Call = Callable[..., tuple[int, str, str]]


def test_doctor_names_what_is_bad_with_a_fix(call: Call, tmp_path: Path, generated: DataDir) -> None:
    from claris_kaggle.doctor import BAD, GOOD, check_installation

    good = {one.name: one for one in check_installation(generated.root, tmp_path, account=False)}
    assert good["data"].state == good["torch pair"].state == GOOD and "240 training" in good["data"].found
    bad = {one.name: one for one in check_installation(tmp_path / "nowhere", tmp_path, account=False)}
    assert bad["data"].state == BAD and "--data DIR" in bad["data"].hint
    code, shown, _ = call("doctor", "--data", tmp_path / "nowhere", "--json")
    assert code == 1 and '"ok": false' in shown
    code, shown, _ = call("doctor", "--account", "--data", generated.root)
    assert code == 1 and "no Kaggle token was found" in shown


def test_a_gpu_on_which_torch_cannot_compute_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    from claris_kaggle import doctor

    if torch.cuda.is_available():
        pytest.skip("torch can compute on the GPU here")
    seen = SimpleNamespace(name="Tesla P100", total_memory=16e9)
    for name, value in (("is_available", True), ("device_count", 1), ("get_device_properties", seen)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    [found] = doctor._check_devices()
    assert found.state == doctor.BAD and found.found.startswith("Tesla P100, 16 GB: ") and found.hint
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as with an old driver
    [found] = doctor._check_devices()
    assert found.state == doctor.BAD and found.found == "1 GPU that torch cannot use" and "driver" in found.hint


def test_all_missing_packages_are_installed_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from claris_kaggle import doctor

    version = importlib.metadata.version

    def without_two(name: str) -> str:
        if name in ("timm", "albumentations"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_two)
    missing = {one.hint for one in doctor._check_packages() if one.state == doctor.BAD}
    assert len(missing) == 1 and set(missing.pop().split()) == {"pip", "install", "timm", "albumentations"}
    assert _find_missing(["timm>=1", "numpy", "onnx; extra == 'onnx'"]) == ["timm"]


def test_without_a_home_a_cache_is_asked_for(call: Call, generated: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    code, _, said = call("pack", "--data", generated.root)
    assert (code, said) == (2, "claris: this user has no home folder for the cache. Give a folder with --cache\n")
    code, shown, _ = call("doctor")
    assert code == 1 and "disk           this user has no home" in shown and "torch pair" in shown
