"""Test networks by name, starting weights from files, and checkpoints, which are read completely or refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from claris_kaggle.core.config import _ADDED_OPTIONS, TrainConfig, apply_preset, require_same
from claris_kaggle.core.errors import ClarisError, DataError, RunError, UsageError
from claris_kaggle.models.factory import create_model, fuse_batch_norm, fuse_every_batch_norm
from claris_kaggle.models.weights import find_weights, load_initial_weights, read_weights
from claris_kaggle.training.checkpoint import _load_checkpoint, _previous_path, _serialize, _write_checkpoint


def test_weights_depend_on_name_and_seed_alone() -> None:
    torch.manual_seed(99)
    one = create_model("tiny", seed=1).state_dict()
    torch.rand(5)
    two, other = create_model("tiny", seed=1).state_dict(), create_model("tiny", seed=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert sum(value.numel() for value in one.values()) < 2000


def test_densenet121_is_timms_with_two_classes() -> None:
    model = create_model("densenet121").eval()
    assert sum(value.numel() for value in model.parameters()) == 6_955_906
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


def test_the_classifier_of_two_classes_starts_with_logits_near_zero() -> None:
    model = create_model("mobilenetv3_small_100")  # timm draws its classifier 20 times as wide
    classifier = model.get_classifier()
    features = 2 * torch.rand(64, classifier.in_features)  # as large as with ImageNet weights
    assert float(classifier(features).detach().std()) < 1
    assert torch.equal(classifier.weight, create_model("mobilenetv3_small_100").get_classifier().weight)


def test_an_unknown_network_is_named_with_near_ones() -> None:
    with pytest.raises(UsageError, match="'densenet12';.*densenet121"):
        create_model("densenet12")


def test_starting_weights_of_another_number_of_classes_leave_only_the_classifier_out(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    source = timm.create_model("densenet121", num_classes=1000).state_dict()
    safetensors.torch.save_file(source, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in source.items()}}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        model = create_model("densenet121")
        assert load_initial_weights(model, tmp_path / name) == ["classifier.bias", "classifier.weight"]
        assert torch.equal(model.state_dict()["features.conv0.weight"], source["features.conv0.weight"])


@pytest.mark.parametrize("name", ["dpn48b", "resnetv2_18"])
def test_a_convolution_as_classifier_is_left_out_too(name: str, tmp_path: Path) -> None:
    import timm

    source = timm.create_model(name, num_classes=10).state_dict()
    torch.save(source, tmp_path / "w.pth")
    model = create_model(name)
    skipped = load_initial_weights(model, tmp_path / "w.pth")
    assert {model.state_dict()[one].shape[0] for one in skipped} == {2} and len(skipped) == 2
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items() if key not in skipped)


def test_weights_of_another_input_size_that_cannot_be_converted_name_their_size(tmp_path: Path) -> None:
    torch.save(create_model("levit_128s", side=224).state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"11 with another shape .*same network and input size. .*--resolution 224"):
        load_initial_weights(create_model("levit_128s", side=96), tmp_path / "w.pth")


def test_torchvisions_old_names_of_layers_are_known(tmp_path: Path) -> None:
    own = create_model("densenet121", seed=3).state_dict()
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for name, value in own.items()}
    torch.save(old, tmp_path / "w.pth")
    model = create_model("densenet121", seed=4)
    assert load_initial_weights(model, tmp_path / "w.pth") == []
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('/tmp/claris-evil', 'w')",)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"PK\x03\x04rest", pickle.dumps(Evil()), pickle.dumps({"a": 1}), b"\x08\0\0\0\0\0\0\0{}      "],
)
def test_a_damaged_or_hostile_file_of_weights_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match="no readable weights"):
        read_weights(tmp_path / "w.pth")
    assert not Path("/tmp/claris-evil").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(create_model("tiny").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="expected weights of the same network"):
        load_initial_weights(create_model("densenet121"), tmp_path / "w.safetensors")


def test_imagenet_weights_without_a_network_fail_with_the_way_out(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ClarisError, match=r"could not be downloaded.*--weights none"):
        find_weights("imagenet", "densenet121")
    assert capfd.readouterr().err == "downloading the ImageNet weights of densenet121\n"
    with pytest.raises(UsageError, match=r"'densenet12';.*densenet121"):
        find_weights("imagenet", "densenet12")
    with pytest.raises(UsageError, match="no such file"):
        find_weights("nowhere.pth", "densenet121")
    assert find_weights("none", "densenet121") is None


def test_a_checkpoint_comes_back_and_the_one_before_is_the_fallback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "last.ckpt"
    assert _load_checkpoint(path) is None
    for number in range(3):
        _write_checkpoint(path, _serialize({"number": number, "tensor": torch.full((3,), number)}))
    assert _load_checkpoint(path)["number"] == 2  # type: ignore[index]
    path.write_bytes(path.read_bytes()[:-1])
    assert _load_checkpoint(path)["number"] == 1  # type: ignore[index]
    assert "resuming from the previous checkpoint" in capsys.readouterr().err
    _previous_path(path).write_bytes(b"x")
    with pytest.raises(RunError, match="damaged or cut off"):
        _load_checkpoint(path)


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _write_checkpoint(path, _serialize({"tensor": torch.arange(5)}))
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(RunError):
            _load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("epochs", 0, "--epochs is 0; it must be at least 1"),
        ("batch_size", -1, "--batch-size is -1"),
        ("lr", -1.0, "--lr is -1"),
        ("lr", float("nan"), "--lr is nan; it must be from 0 to 1"),
        ("mixup", 20.0, "--mixup is 20.0; it must be from 0 to 10"),
        ("class_weight", 0.0, "--class-weight is 0.0; it must be from 0.01"),
        ("schedule", "magic", "it must be one of onecycle, cosine, constant"),
        ("epochs", "6", "--epochs is '6'; expected int"),
    ],
)
def test_a_config_refuses_what_cannot_be_meant(field: str, value: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{field: value})
    assert words in str(caught.value)


def test_the_layers_cannot_be_frozen_in_every_epoch() -> None:
    with pytest.raises(
        UsageError, match="--freeze-epochs is 6 and --epochs 6; at least one epoch must train all layers"
    ):
        TrainConfig(freeze_epochs=6)


def test_a_config_with_removed_options_loads_only_if_they_were_unused() -> None:
    removed: dict[str, Any] = {"small_share": 0.0, "shift": 0, "pooling": "mean", "cutmix": 0.0, "drop_path": 0.0}
    config = TrainConfig(seed=3)
    assert TrainConfig.from_json({**config.to_json(), **removed}, "config.json") == config
    for name, used in {"small_share": 0.5, "shift": 8, "pooling": "centre", "cutmix": 0.5, "drop_path": 0.1}.items():
        with pytest.raises(DataError, match=f"config.json: trained with {name} .*removed.*the version that trained"):
            TrainConfig.from_json({**config.to_json(), **removed, name: used}, "config.json")


def test_a_run_from_before_an_option_was_added_has_it_at_its_default() -> None:
    config = TrainConfig(seed=3)
    older = {name: value for name, value in config.to_json().items() if name not in _ADDED_OPTIONS}
    assert TrainConfig.from_json(older, "config.json") == config


def test_typed_options_are_judged_beside_those_of_the_preset() -> None:
    assert apply_preset({"weights": "none", "stem": "pool4", "crop": 48}).tail == "no-pool"
    with pytest.raises(UsageError, match="--tail pool leaves no feature map at 48 pixels"):
        apply_preset({"weights": "none", "tail": "pool", "resolution": 48})
    assert apply_preset({"weights": "none", "model": "tiny"}).preset == "scratch"
    assert apply_preset({}).preset == apply_preset({"weights": "some.pth"}).preset == "pretrained"
    with pytest.raises(UsageError, match="--preset is 'magic'"):
        apply_preset({"preset": "magic"})


def test_a_config_comes_back_from_json_and_names_unknown_fields() -> None:
    config = TrainConfig(lr=0.5, epochs=3)
    assert TrainConfig.from_json(config.to_json(), "x") == config
    with pytest.raises(DataError, match="unknown fields speed; this is claris"):
        TrainConfig.from_json({**config.to_json(), "speed": 1}, "x")
    with pytest.raises(RunError, match="epochs: 3 in the run, 4 now"):
        require_same(config, TrainConfig(lr=0.5, epochs=4), "config.json")


def test_folded_batch_norms_give_the_same_logits() -> None:
    model = create_model("densenet121", seed=1).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(part.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    folded = fuse_batch_norm(model)
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    left = [sum(isinstance(part, torch.nn.BatchNorm2d) for part in one.modules()) for one in (model, folded)]
    assert left == [121, 62]


@pytest.mark.parametrize(("name", "before", "left"), [("resnet18", 20, 0), ("tiny", 2, 0)])
def test_every_norm_after_a_convolution_is_folded(name: str, before: int, left: int) -> None:
    model = create_model(name, seed=1).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(part.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
    folded = fuse_every_batch_norm(model)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)
    counts = [sum(isinstance(part, torch.nn.BatchNorm2d) for part in one.modules()) for one in (model, folded)]
    assert counts == [before, left]
