"""Test networks of repositories and folders in timm's format: read, loaded, stored with the run, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, UsageError
from claris_kaggle.core.files import read_json, sha256_file
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.augment import to_input
from claris_kaggle.inference.evidence import NO_MAP
from claris_kaggle.inference.fold_models import load_trained
from claris_kaggle.models.factory import create_model, pretrained_normalisation
from claris_kaggle.models.sources import canonical_name, portable_name, read_architecture
from claris_kaggle.models.weights import find_weights, load_initial_weights
from tests.support.runs import places
from tests.support.world import one_line

Call = Callable[..., tuple[int, str, str]]
STATISTICS = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.21, 0.22)}
NUMBERS = "0.3,0.4,0.5/0.2,0.21,0.22"


def save(name: str, folder: Path, **arguments: object) -> torch.nn.Module:
    """Let timm write a network of seven classes to a folder, as it does for a repository."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, pretrained_cfg_overlay=STATISTICS, **arguments)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "resnet"
    save("test_resnet", folder, stem_type="deep")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "vit"
    save("test_vit", folder)
    return folder


def test_names_have_one_form(resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert canonical_name(str(resnet)) == canonical_name(f"local-dir:{resnet}") == f"local-dir:{resnet}"
    assert canonical_name("hf_hub:timm/resnet18") == canonical_name("hf-hub:timm/resnet18") == "hf-hub:timm/resnet18"
    assert [canonical_name(name) for name in ("tiny", "densenet121.ra_in1k", "densenet12")] == [
        "tiny", "densenet121.ra_in1k", "densenet12",
    ]  # fmt: skip
    assert portable_name(f"local-dir:{resnet}") == "local-dir:resnet" and portable_name("resnet18") == "resnet18"
    monkeypatch.chdir(resnet.parent)
    assert canonical_name("resnet") == "local-dir:resnet"


def test_a_folder_gives_architecture_weights_and_normalisation(resnet: Path) -> None:
    name = f"local-dir:{resnet}"
    architecture = read_architecture(name)
    assert json.loads(architecture)["arguments"]["stem_type"] == "deep"
    model, path = create_model(name, architecture=architecture), find_weights("imagenet", name)
    assert path == resnet / "model.safetensors"
    assert path is not None and load_initial_weights(model, path) == ["fc.bias", "fc.weight"]
    assert pretrained_normalisation(name) == NUMBERS


def test_weights_of_another_input_size_are_those_that_timm_makes_of_them(vit: Path) -> None:
    import timm

    model = create_model(f"local-dir:{vit}", side=96)
    load_initial_weights(model, vit / "model.safetensors")
    overlay = {"file": str(vit / "model.safetensors"), "num_classes": 7}
    theirs = timm.create_model("test_vit", pretrained=True, num_classes=2, img_size=96, pretrained_cfg_overlay=overlay)
    own = model.state_dict()
    assert own["pos_embed"].shape[1] == 37
    for key, value in theirs.state_dict().items():
        assert key.startswith("head.") or torch.equal(own[key], value), key


def test_numbers_normalise_as_the_name_that_has_them() -> None:
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_input(images, "0.5,0.5,0.5/0.5,0.5,0.5"), to_input(images, "inception"))
    assert TrainConfig.from_json({**TrainConfig().to_json(), "normalise": NUMBERS}, "x").normalise == NUMBERS
    for wrong in ("0.5,0.5/0.5,0.5,0.5", "nan,0,0/1,1,1", "-1,0,0/1,1,1", "", "0,0,0/0,1,1", "128,128,128/50,50,50"):
        with pytest.raises(UsageError, match="--normalise is"):
            TrainConfig(normalise=wrong)


def cached(repository: str, folder: Path, cache: Path) -> None:
    """Lay the files of a folder into the cache of the Hugging Face client, as a download does."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


def test_a_repository_in_the_cache_is_used_without_a_network(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached("someone/resnet", resnet, tmp_path)
    name = "hf-hub:someone/resnet"
    assert (
        read_architecture(name) == read_architecture(f"local-dir:{resnet}")
        and pretrained_normalisation(name) == NUMBERS
    )
    path = find_weights("imagenet", name)
    assert path is not None and sha256_file(path) == sha256_file(resnet / "model.safetensors")


def test_what_is_no_network_of_timm_is_one_line(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(ClarisError, match=r"--model hf-hub:no/thing: config.json .*could not be downloaded.*Check the"):
        read_architecture("hf-hub:no/thing")
    for wrong in ("hf-hub:", "hf-hub:https://huggingface.co/timm/resnet18"):
        with pytest.raises(UsageError, match=f"^--model is '{wrong}'; expected hf-hub:OWNER/NAME, a repository on"):
            read_architecture(wrong)
    with pytest.raises(UsageError, match=r"no config.json there; expected a folder with config.json"):
        read_architecture(f"local-dir:{tmp_path}")
    for content, words in (
        ("{", "not in timm's format"),
        ("{}", "expected the keys architecture"),
        ('{"architecture": "magic", "pretrained_cfg": {}}', "is a 'magic'; unknown timm model"),
        ('{"architecture": "test_vit", "model_args": {"in_chans": 1}}', "1 input channels; expected 3"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UsageError, match=words):
            create_model(f"local-dir:{tmp_path}")
    shutil.copy(vit / "config.json", tmp_path)
    with pytest.raises(UsageError, match=r"model.safetensors: no such file; .*Give --weights FILE"):
        find_weights("imagenet", f"local-dir:{tmp_path}")


def test_a_run_of_a_folder_predicts_classifies_and_is_exported_without_it(
    call: Call, few: DataDir, tmp_path: Path
) -> None:
    save("test_vit", tmp_path / "source", depth=1)
    digest = sha256_file(tmp_path / "source/model.safetensors")
    cache, fold_file = tmp_path / "cache", tmp_path / "folds.csv"
    run = places(few, cache, tmp_path / "run")
    assert call("folds", "--data", few.root, "--cache", cache, "--k", 2, "--out", fold_file)[0] == 0
    begin = ["train", *run, "--folds", fold_file, "--model", tmp_path / "source", "--normalise", "model"]
    more = ["--threads", 1, "--nproc", 1, "--epochs", 1, "--dropout", 0.1, "--global-pool", "avg", "--resolution", 32]
    code, _, said = call(*begin, *more)
    assert code == 0 and "from its published weights" in said, said
    config = read_json(tmp_path / "run/config.json")
    assert config["normalise"] == NUMBERS and config["weights_sha256"] == digest
    with (tmp_path / "source/model.safetensors").open("ab") as stream:
        stream.write(b" ")
    code, _, said = call(*begin, *more)
    assert code == 1 and "weights_sha256" in one_line(said)
    shutil.rmtree(tmp_path / "source")
    code, _, said = call(*begin, *more)
    assert code == 0 and said.count("already finished") == 2, said
    RunDir(tmp_path / "run").fold(1).weights_manifest.unlink()
    code, _, said = call(*begin, *more)
    assert code == 0 and "fold 1: resuming" in said and "fold 1: finished" in said, said
    code, _, said = call(*begin, *more, "--weights", "none")
    assert code == 1 and "weights: 'imagenet' in the run, 'none' now" in one_line(said)
    shutil.move(tmp_path / "run/fold1", tmp_path / "fold1")
    code, _, said = call(*begin, *more)
    assert code == 2 and "model.safetensors: no such file" in one_line(said)
    shutil.move(tmp_path / "fold1", tmp_path / "run/fold1")
    assert call("predict", *run, "--nproc", 1, "--views", 1)[0] == 0
    code, _, said = call("export", tmp_path / "run", "--out", tmp_path / "export", "--onnx", "--views", 1)
    assert code == 0, said
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "export").glob("*.[jm][sd]*"))
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    shown = {}
    for folder in ("run", "export"):
        page = tmp_path / f"{folder}.html"
        code, out, said = call("classify", "--run", tmp_path / folder, tmp_path / "patch.png", "--html", page, "--json")
        assert code == 0 and said == f"{NO_MAP}\n"
        assert "No evidence map: the head" in page.read_text()
        shown[folder] = json.loads(out)["images"]
    assert shown["run"] == shown["export"] and shown["run"][0]["map"] is None
    assert load_trained(tmp_path / "export").config.model == "local-dir:source"
    report = tmp_path / "report.html"
    code, _, said = call("report", tmp_path / "run", "--out", report, "--data", few.root, "--cache", cache)
    assert code == 0 and "No evidence map: the head" in report.read_text(), said
