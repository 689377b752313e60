"""Test exports: the results of the run, nothing about this machine, and refused if a byte has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import ClarisError, DiskError, RunError
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.paths import DataDir, ExportDir, RunDir
from claris_kaggle.data.patches import read_patch
from claris_kaggle.evaluation.predictions import read_test
from claris_kaggle.inference.fold_models import FoldModels, load_trained, predict_ensemble
from claris_kaggle.models.factory import create_model
from claris_kaggle.serving import onnx_export
from claris_kaggle.serving.classify import NOTICE, classify_files
from claris_kaggle.serving.export import export_run
from claris_kaggle.serving.onnx_export import _AveragedModel, _run_onnx
from tests.conftest import build_once, contents, environment

Call = Callable[..., tuple[int, str, str]]
FILES = ("SHA256SUMS", "export.json", "config.json", "README.md", "fold0.safetensors", "model.onnx")


@pytest.fixture(scope="module")
def exported(finished: RunDir, tmp_path_factory: pytest.TempPathFactory) -> ExportDir:
    """The finished run as a folder with model.onnx; never written to."""

    def build(folder: Path) -> None:
        folder.mkdir()
        export_run(finished, folder / "first", onnx=True)

    return ExportDir(build_once(tmp_path_factory, "exports", build) / "first")


def patches_of(generated: DataDir, finished: RunDir) -> tuple[np.ndarray, np.ndarray]:
    """The test patches in order of their ids, and what the run predicted for them."""
    test = read_test(finished.test)
    folder = generated.patches("test")
    return np.stack([read_patch(folder / f"{name}.tif") for name in test.ids]), test.probabilities


def test_an_export_answers_exactly_as_its_run(exported: ExportDir, finished: RunDir, generated: DataDir) -> None:
    paths = sorted(generated.patches("test").iterdir())
    one, two = (
        [found.to_json() for found in classify_files(load_trained(root), paths) if not isinstance(found, ClarisError)]
        for root in (finished.root, exported.root)
    )
    assert one == two and len(one) == 70


def test_onnx_answers_as_the_run_predicted(exported: ExportDir, finished: RunDir, generated: DataDir) -> None:
    images, needed = patches_of(generated, finished)
    content = exported.onnx.read_bytes()
    np.testing.assert_allclose(_run_onnx(content, images), needed, rtol=0, atol=1e-5)
    np.testing.assert_allclose(_run_onnx(content, images[:1]), needed[:1], rtol=0, atol=1e-5)


def test_a_folder_says_what_it_is_and_proves_itself(exported: ExportDir, finished: RunDir) -> None:
    facts, card = read_json(exported.metadata), exported.model_card.read_text()
    overall = read_json(finished.metrics)["overall"]
    assert facts["oof"] == overall and facts["temperature"] == overall["temperature"] and facts["folds"] == [0, 1, 2]
    assert facts["thresholds"] == {"half": 0.5, "oof": overall["best_threshold"]} and facts["onnx"] == {"views": 8}
    assert "Not for diagnosis" in card and f"{overall['auc']:.4f}" in card and facts["notice"] == NOTICE
    assert "trained on synthetic patches" in card and read_json(exported.config)["generated_data"] is True
    assert "## Limits" in card and "model.onnx" in card and "{" not in card
    for fold in range(3):
        assert exported.weights(fold).read_bytes() == finished.fold(fold).weights.read_bytes()
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", exported.checksums.name], cwd=exported.root, capture_output=True
    )
    assert done.returncode == 0 and done.stdout.count(b": OK") == len(contents(exported.root)) - 1


def test_nothing_of_this_machine_is_in_it(
    finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: ExportDir
) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef" * 2)
    run = RunDir(shutil.copytree(finished.root, tmp_path / "secret-place" / "run"))
    write_json(run.config, {**read_json(run.config), "weights": str(tmp_path / "start.safetensors")})
    export_run(run, tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["weights"] == "start.safetensors"
    everything = b"".join([*contents(tmp_path / "out").values(), *contents(exported.root).values()])
    root = str(Path(onnx_export.__file__).parents[2]).encode()
    for word in (str(tmp_path).encode(), b"secret-place", b"0123456789abcdef" * 2, root, b"site-packages", b".py"):
        assert word not in everything, word


@given(name=st.sampled_from(FILES), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_refused(
    exported: ExportDir, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("changed") / "copy"
    shutil.copytree(exported.root, root)
    content = bytearray((root / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (root / name).write_bytes(content)
    with pytest.raises(ClarisError) as caught:
        load_trained(root)
    assert "Copy the export again" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_later_format_are_refused(exported: ExportDir, tmp_path: Path) -> None:
    copy = ExportDir(shutil.copytree(exported.root, tmp_path / "copy"))
    copy.weights(1).unlink()
    with pytest.raises(RunError, match=r"fold1\.safetensors: the weights are missing"):
        load_trained(copy.root)
    write_json(copy.metadata, {**read_json(copy.metadata), "format": 2})
    digest = hashlib.sha256(copy.metadata.read_bytes()).hexdigest()
    lines = [line for line in copy.checksums.read_text().splitlines(keepends=True) if "export.json" not in line]
    copy.checksums.write_text("".join(sorted([*lines, f"{digest}  export.json\n"], key=lambda line: line.split()[1])))
    with pytest.raises(RunError, match="of format 2; expected 1"):
        load_trained(copy.root)


def test_unfinished_and_changed_runs_are_refused_and_nothing_is_written(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(finished.root, tmp_path / "run"))
    out = tmp_path / "exports" / "out"
    manifest = read_json(run.fold(2).predictions_manifest)
    write_json(run.fold(2).predictions_manifest, {**manifest, "weights_sha256": "0" * 64})
    with pytest.raises(RunError, match=r"fold 2 not predicted with its weights.*Run claris predict"):
        export_run(run, out)
    write_json(run.fold(2).predictions_manifest, manifest)
    run.fold(1).weights.write_bytes(b"x")
    with pytest.raises(RunError, match=r"fold 1 not finished, or damaged; expected all of 3 folds"):
        export_run(run, out)
    with pytest.raises(RunError, match=r"nowhere: no such folder \(runs in .*: run\)"):
        export_run(RunDir(tmp_path / "nowhere"), out)
    assert not out.parent.exists()


@pytest.mark.parametrize("step", ["_render_card", "sums_text"])
def test_a_failure_on_the_way_leaves_nothing(
    finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object, **named: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"claris_kaggle.serving.export.{step}", fail)
    with pytest.raises(DiskError, match="no space left"):
        export_run(finished, tmp_path / "exports" / "out")
    assert not (tmp_path / "exports").exists()


def test_what_is_there_is_left_alone(call: Call, finished: RunDir, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        code, _, said = call("export", finished.root, "--out", tmp_path / name)
        assert code == 1 and "already exists; nothing was changed" in said
    assert contents(tmp_path / "full") == {"mine.txt": b"mine"}
    code, shown, said = call("export", finished.root, "--out", tmp_path / "empty", "--json")
    assert code == 0 and json.loads(shown)["out"] == str(tmp_path / "empty") and said == ""
    assert (tmp_path / "empty").stat().st_mode & 0o055 == 0o055


@pytest.mark.slow
def test_onnxruntime_stores_nothing_in_the_users_home(exported: ExportDir, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from claris_kaggle.serving import onnx_export;"
        "onnx_export._run_onnx(Path(sys.argv[1]).read_bytes(), np.zeros((1, 96, 96, 3), np.uint8))"
    )
    known = {**environment(), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del known["ORT_DISABLE_TELEMETRY"]  # set by the import above
    subprocess.run([sys.executable, "-c", code, exported.onnx], check=True, env=known)
    assert not list(tmp_path.rglob("*onnx*"))


def test_an_export_ends_with_the_command_that_uses_it(call: Call, finished: RunDir, tmp_path: Path) -> None:
    code, shown, said = call("export", finished.root, "--out", tmp_path / "out")
    assert (code, shown) == (0, f"{tmp_path / 'out'}\n")
    assert said.splitlines()[-1] == f"next: claris classify --run {tmp_path / 'out'} IMAGE"


def test_without_the_extra_one_line_says_how_to_get_it(
    call: Call, finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_ONNX_PACKAGES", ("onnx", "not_a_package"))
    code, _, said = call("export", finished.root, "--out", tmp_path / "out", "--onnx")
    assert code == 2 and "not_a_package, not installed here" in said
    assert "pip install 'claris_kaggle[onnx]'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("crop", "resolution", "views"),
    [
        (80, 33, 4),
        (96, 128, 1),
        pytest.param(64, 0, 1, marks=pytest.mark.slow),
        pytest.param(96, 48, 8, marks=pytest.mark.slow),
    ],
)
def test_every_crop_and_resolution_is_exported_as_it_is_classified(crop: int, resolution: int, views: int) -> None:
    """Of one fold; the mean of several is in `exported`."""
    config = TrainConfig(model="tiny", crop=crop, resolution=resolution, normalise="imagenet", precision="fp32")
    trained = FoldModels("x", config, {0: create_model("tiny", 1).eval()}, {})
    images = np.random.default_rng(1).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    found = _run_onnx(
        onnx_export._convert_to_onnx(_AveragedModel(trained, views).eval(), torch.from_numpy(images[:2]), {}), images
    )
    np.testing.assert_allclose(found, predict_ensemble(trained, images, views=views).probabilities, rtol=0, atol=1e-5)


class Branching(torch.nn.Module):
    """A network whose computation depends on its input, which no ONNX graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        return self.linear(means if means.sum().item() > 0 else -means)


def test_a_network_that_onnx_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    trained = FoldModels("x", TrainConfig(model="tiny", weights="none", precision="fp32"), {0: Branching().eval()}, {})
    with pytest.raises(ClarisError, match=r"tiny could not be .* ONNX .*without --onnx"):
        onnx_export._write_onnx(tmp_path / "model.onnx", trained, 1, {})
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
def test_a_real_densenet_in_onnx_answers_as_it_does(tmp_path: Path) -> None:
    from claris_kaggle.models.factory import fuse_batch_norm

    layout = {"stem": "pool4", "tail": "no-pool"}
    model = fuse_batch_norm(create_model("densenet121", **layout))
    trained = FoldModels("x", TrainConfig(precision="fp32", **layout), {0: model}, {})
    onnx_export._write_onnx(tmp_path / "model.onnx", trained, 8, {})  # proves itself to 1e-5
    assert (tmp_path / "model.onnx").stat().st_size > 27e6
