"""Test weights as frameworks and authors publish them: read under any naming, or refused with the reason."""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from claris_kaggle.core.errors import DataError, UsageError
from claris_kaggle.models.factory import create_model
from claris_kaggle.models.weight_names import _COMMON_NETWORKS, _NO_WEIGHT_ENDINGS, _SAME_WEIGHTS
from claris_kaggle.models.weights import _match_converted, find_weights, load_initial_weights, read_weights

State = dict[str, Tensor]
NETWORK = "test_resnet"  # one of timm's, with 470,000 weights
SOURCE = create_model(NETWORK, seed=5)
STATE: State = dict(SOURCE.state_dict())
BODY: State = {name: value for name, value in STATE.items() if not name.startswith("fc.")}
OTHER: State = {name: torch.zeros_like(value) for name, value in STATE.items()}


def put(prefix: str, tensors: Mapping[str, Tensor] = STATE) -> State:
    """The tensors with a prefix before each name."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def head(prefix: str, classes: int = 1000) -> State:
    """A classifier for another task."""
    return {
        f"{prefix}weight": torch.ones(classes, SOURCE.get_submodule("fc").in_features),
        f"{prefix}bias": torch.ones(classes),
    }


def as_sequential() -> State:
    """The body as nn.Sequential of the network's children: fastai and TIAToolbox save it so."""
    return dict(nn.Sequential(*list(SOURCE.children())[:-2]).state_dict())


class Settings:
    """Options as a class of the author's own program."""

    def __init__(self) -> None:
        self.rate = 0.1


OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9).state_dict()
LIGHTNING = {
    "epoch": 3,
    "global_step": 100,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": {**put("model.", BODY), **head("model.fc.", 3), "criterion.weight": torch.ones(3)},
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint": {"best_model_path": "x.ckpt", "best_model_score": torch.tensor(0.9)}},
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [{"last_epoch": 3}],
    "hyper_parameters": {"path": pathlib.PurePosixPath("data"), "options": argparse.Namespace(lr=0.1)},
}
# name: (content of torch.save, whether the classifier is in it)
PUBLISHED: dict[str, tuple[object, bool]] = {
    "plain": (STATE, True),
    "model_state_dict": ({"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER}, True),
    "net": ({"net": STATE, "acc": 93.1, "epoch": 4}, True),
    "weights": ({"weights": STATE}, True),
    "params": ({"params": STATE, "name": "resnet18"}, True),
    "network": ({"network": put("module."), "args": {"lr": 0.1}}, True),
    "nested": ({"checkpoint": {"model": STATE, "epoch": 1}}, True),
    "a tuple": ((STATE, OPTIMIZER), True),
    "numbers beside the tensors": ({**STATE, "epoch": 7, "arch": "resnet18", "best": 0.91, "nothing": None}, True),
    "module": (put("module."), True),
    "backbone": (put("backbone."), True),
    "encoder": (put("encoder."), True),
    "compiled in parallel": (put("module._orig_mod."), True),
    "parallel in compiled": (put("_orig_mod.module."), True),
    "deep": (put("module.model.backbone.net."), True),
    "Lightning": (LIGHTNING, False),
    "timm": ({"epoch": 9, "arch": "resnet18", "state_dict": OTHER, "state_dict_ema": STATE}, True),
    "timm's average in parallel": ({"state_dict": put("module.", OTHER), "state_dict_ema": put("module.")}, True),
    "averaged weights": ({"ema_state_dict": STATE, "model_state_dict": OTHER}, True),
    "torch's AveragedModel": ({**put("module."), "n_averaged": torch.tensor(3)}, True),
    "fastai learner": ({"model": {**put("0."), **head("1.8.", 2)}, "opt": OPTIMIZER}, True),
    "fastai body": ({"model": {**put("0.", as_sequential()), **head("1.8.", 37)}, "opt": None}, False),
    "TIAToolbox": ({**put("feat_extract.", as_sequential()), **head("classifier.", 9)}, False),
    "MoCo": (
        {
            "epoch": 200,
            "state_dict": {
                **put("module.encoder_q.", BODY), **head("module.encoder_q.fc.0.", 512),
                **head("module.encoder_q.fc.2.", 128),
                **put("module.encoder_k.", {name: OTHER[name] for name in BODY}),
                "module.queue": torch.ones(128, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            },
        },
        False,
    ),
    "DINO": ({"student": put("module.backbone.", OTHER), "teacher": put("backbone."), "epoch": 1}, True),
    "segmentation": ({**put("encoder.", BODY), "decoder.blocks.0.conv1.weight": torch.ones(3, 3)}, False),
    "profiled": ({**STATE, "layer1.0.conv1.total_ops": torch.ones(1), "total_params": torch.ones(1)}, True),
    "half precision": ({name: value.half() for name, value in STATE.items() if "num_b" not in name}, True),
    "all as floats": ({name: value.double() for name, value in STATE.items()}, True),
    "without counters": ({name: value for name, value in STATE.items() if "num_batches" not in name}, True),
    "Namespace": ({"args": argparse.Namespace(lr=0.1, path=Path("x")), "state_dict": STATE}, True),
    "NumPy scalars": ({"best": np.float64(0.93), "history": np.arange(3.0), "state_dict": STATE}, True),
    "a class of the author": ({"config": Settings(), "kinds": {Settings}, "model": STATE}, True),
    "compiled parts": ({name.replace("layer1.", "layer1._orig_mod."): value for name, value in STATE.items()}, True),
    "FSDP": ({f"_fsdp_wrapped_module.{name}".replace(".0.", ".0._fsdp_wrapped_module."): value
              for name, value in STATE.items()}, True),
    "a parallel part": ({name.replace("layer2.", "layer2.module."): value for name, value in STATE.items()}, True),
    "DeepSpeed": ({"module": STATE, "buffer_names": ["bn1"], "ds_version": "0.14", "ds_config": {}}, True),
    "MMEngine swaps the averaged weights": (
        {"state_dict": put("backbone.", STATE), "ema_state_dict": put("backbone.", OTHER), "message_hub": {}}, True
    ),
    "VISSL": (
        {"classy_state_dict": {"base_model": {"model": {"trunk": put("_feature_blocks.", BODY), "heads": {}}}}}, False
    ),
    "sparse": ({name: value.to_sparse() if value.ndim > 1 else value for name, value in STATE.items()}, True),
    "defaultdict": ({"log": defaultdict(list, {"loss": [0.1]}), "state_dict": STATE}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_read(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    content, with_head = PUBLISHED[name]
    torch.save(content, tmp_path / "w.pth.tar")
    model = create_model(NETWORK, seed=6)
    assert load_initial_weights(model, tmp_path / "w.pth.tar") == ([] if with_head else ["fc.bias", "fc.weight"])
    expected = STATE if with_head else BODY
    rough = {"rtol": 1e-2, "atol": 1e-3} if name == "half precision" else {"rtol": 0, "atol": 0}
    for key, value in model.state_dict().items():
        if key in expected and "num_batches" not in key:
            torch.testing.assert_close(value, expected[key], **rough)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.ckpt", "w.pth", "weights", "w.safetensors"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=name != "w.pth")
    assert load_initial_weights(create_model(NETWORK), tmp_path / name) == []
    safetensors.torch.save_file(put("model."), tmp_path / name)
    assert load_initial_weights(create_model(NETWORK), tmp_path / name) == []


def test_densenets_of_chexnet_and_fastai_are_read(tmp_path: Path) -> None:
    own = create_model("densenet121", seed=3).state_dict()
    body = {name: value for name, value in own.items() if not name.startswith("classifier")}
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for name, value in body.items()}
    files = {
        "CheXNet": {**put("module.densenet121.", old), **{"module.densenet121.classifier.0.bias": torch.ones(14)}},
        "fastai": {name.replace("features.", "0.0."): value for name, value in body.items()},
        "TIAToolbox": {name.replace("features.", "feat_extract."): value for name, value in body.items()},
        "features alone": {name.replace("features.", ""): value for name, value in body.items()},
    }
    model = outline("densenet121").to_empty(device="cpu")
    for name, tensors in files.items():
        torch.save({"epoch": 1, "state_dict": tensors}, tmp_path / "w.pth")
        for value in model.state_dict().values():
            value.fill_(7)
        assert load_initial_weights(model, tmp_path / "w.pth") == ["classifier.bias", "classifier.weight"], name
        loaded = model.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in body.items()), name


def test_which_network_of_a_file_is_taken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "claris_kaggle")
    torch.save(PUBLISHED["timm"][0], tmp_path / "w.pth")
    load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")
    assert f"{tmp_path / 'w.pth'}: several networks fit; taking state_dict_ema, not state_dict" in caplog.messages


def outline(name: str) -> nn.Module:
    """One of timm's networks without values."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=2)


def light(model: nn.Module, prefix: str = "") -> State:
    """Tensors of the network's names and shapes, all zero: one number each in a file of torch.save."""
    return {f"{prefix}{name}": torch.zeros(()).expand(one.shape) for name, one in model.state_dict().items()}


@pytest.mark.parametrize(
    ("own", "deeper", "prefix"),
    [
        ("resnet18", "resnet34", ""),
        ("resnet18", "resnet34", "module.encoder."),
        ("convnext_tiny", "convnext_small", "model."),
        ("densenet121", "densenet169", ""),
    ],
)
def test_weights_of_a_deeper_relative_are_refused(tmp_path: Path, own: str, deeper: str, prefix: str) -> None:
    torch.save(light(outline(deeper), prefix), tmp_path / "w.pth")
    words = "with another shape" if own == "densenet121" else r"\d+ tensors that the network does not have"
    with pytest.raises(DataError, match=rf"{words} \(.* looks like {deeper}: give --model {deeper}"):
        load_initial_weights(outline(own), tmp_path / "w.pth")


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    torch.save({**STATE, "layer1.2.conv1.weight": torch.ones(64, 64, 3, 3)}, tmp_path / "w.pth")
    model = create_model(NETWORK)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=r"1 tensor that the network does not have \(layer1.2.conv1.weight\)"):
        load_initial_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_network_is_named_too(tmp_path: Path) -> None:
    torch.save({"state_dict": light(outline("resnet50"), "module.")}, tmp_path / "w.pth")
    with pytest.raises(
        DataError, match=r"23 with another shape \(layer1.*The file looks like resnet50: give --model resnet50"
    ):
        load_initial_weights(outline("resnet18"), tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    tensors = {name: one.double() if one.is_floating_point() else one for name, one in STATE.items()}
    tensors["layer2.0.conv1.weight"] = tensors["layer2.0.conv1.weight"].clone()
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"1 tensor with NaN or infinite values \(layer2.0.conv1.weight\)"):
        load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")


def test_layers_that_an_incomplete_download_left_zero_are_refused(tmp_path: Path) -> None:
    content = safetensors.torch.save(STATE)
    (tmp_path / "w.safetensors").write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    with pytest.raises(DataError, match=r"tensors? of zeros only .*The download may be incomplete"):
        load_initial_weights(create_model(NETWORK), tmp_path / "w.safetensors")


def test_a_changed_byte_in_a_file_of_torch_is_seen(tmp_path: Path) -> None:
    content = bytearray(saved(STATE))
    content[len(content) // 2] ^= 0x40
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match="damaged: wrong checksum of archive/data/"):
        load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"layer1.0.conv1.weight": torch.zeros(3, 3)},
            r"1 with another shape \(layer1.0.conv1.weight is 3x3, not \d+x",
        ),
        ({"dist_token": torch.ones(1, 1, 8)}, r"1 tensor that the network does not have \(dist_token\)"),
        ({"layer1.0.conv1.weight": None, "layer1.0.conv1.weight_orig": torch.ones(3)}, "pruned weights.*remove"),
        ({name: None for name in STATE if "running" in name}, r"save its state_dict\(\)"),
        ({"layer1.0.conv1.weight": torch.empty(STATE["layer1.0.conv1.weight"].shape, device="meta")}, "without values"),
    ],
)
def test_what_differs_and_why_is_said(tmp_path: Path, change: dict[str, Tensor | None], words: str) -> None:
    torch.save({name: value for name, value in {**STATE, **change}.items() if value is not None}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=words) as caught:
        load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")
    assert "looks like" not in str(caught.value)


HUGGING_FACE, OPENMMLAB, TORCHVISION = (f"names of {one}" for one in ("Hugging Face", "OpenMMLab", "torchvision"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("conv1._packed_params", "quantised weights"),
        ("base_model.model.blocks.0.attn.qkv.lora_A.weight", "an adapter .LoRA., not the whole network"),
        ("vit.encoder.layer.0.attention.attention.query.weight", HUGGING_FACE),
        ("encoder.layer.0.attention.attention.query.weight", HUGGING_FACE),
        ("layer.3.attention.q_proj.weight", HUGGING_FACE),
        ("resnet.embedder.embedder.convolution.weight", HUGGING_FACE),
        ("convnextv2.encoder.stages.0.layers.0.dwconv.weight", HUGGING_FACE),
        ("swin.encoder.layers.0.blocks.0.attention.self.query.weight", HUGGING_FACE),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", HUGGING_FACE),
        ("segformer.encoder.block.0.0.attention.self.query.weight", HUGGING_FACE),
        ("efficientnet.encoder.blocks.1.expansion.expand_conv.weight", HUGGING_FACE),
        ("backbone.layers.0.ln1.weight", OPENMMLAB),
        ("backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", OPENMMLAB),
        ("backbone.stages.0.0.depthwise_conv.weight", OPENMMLAB),
        ("backbone.layers.1.0.linear_conv.conv.weight", OPENMMLAB),
        ("features.1.0.block.0.weight", TORCHVISION),
        ("module.features.1.0.attn.qkv.weight", TORCHVISION),
        ("encoder.layers.encoder_layer_0.ln_1.weight", TORCHVISION),
        ("_blocks.0._depthwise_conv.weight", "names of the package efficientnet_pytorch"),
    ],
)
def test_names_of_other_programs_are_named(tmp_path: Path, name: str, words: str) -> None:
    torch.save({name: torch.ones(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=rf"layers missing .*the file has 1 tensor .*{words}.*(Give|Merge) ") as caught:
        load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_the_state_of_an_optimizer_is_named(tmp_path: Path) -> None:
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="the state of an optimizer"):
        load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "place", ["models--facebook--dinov2-base/snapshots/f9e4/model.safetensors", "dinov2-base/model.safetensors"]
)
def test_the_same_weights_in_timm_are_named(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file({"encoder.layer.0.attention.attention.query.weight": torch.ones(3)}, path)
    with pytest.raises(DataError, match="timm has the weights of facebook/dinov2-base: give --model (.*) --w") as found:
        load_initial_weights(create_model(NETWORK), path)
    name = re.search(r"--model (\S+)", str(found.value))
    assert name and "dinov2_vitb14" in timm.models.get_pretrained_cfg(name[1]).url


def test_each_listed_name_is_one_of_timm_with_weights() -> None:
    for repository, name in _SAME_WEIGHTS.items():
        words = set(re.split(r"[/-]", repository)) - {"facebook", "224", "dinov2"}
        settings = timm.models.get_pretrained_cfg(name)
        assert settings.hf_hub_id and all(word in name for word in words), repository


def test_names_of_the_authors_are_converted_as_timm_does(tmp_path: Path) -> None:
    own = light(outline("convnext_atto"))
    old = {
        re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", re.sub(r"(stages\.\d)\.blocks", r"\1", name))
        .replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        .replace("head.norm", "norm").replace("head.fc", "head"): value
        for name, value in own.items()
    }  # fmt: skip
    assert not set(own) <= set(old)
    for prefix in ("", "module.", "module.model.backbone."):
        match = _match_converted({"state_dict": put(prefix, old)}, outline("convnext_atto"), [])
        assert set(match[0].tensors) == set(own), prefix


def test_a_file_of_a_network_with_the_same_names_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "claris_kaggle")
    torch.save({"arch": "resnet18.a1_in1k", "state_dict": STATE}, tmp_path / "w.pth")
    load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")
    assert "the file is of resnet18, and --model is test_resnet" in caplog.text


def test_what_is_given_instead_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"")
    (tmp_path / "open" / "archive").mkdir(parents=True)
    (tmp_path / "open" / "archive" / "data.pkl").write_bytes(b"")
    for given, words in (
        (tmp_path / "hub", "a folder; .*Give a file in it: .*model.safetensors"),
        (tmp_path / "open", "an unpacked file of torch.save"),
        ("https://example.org/w.pth", "a web address; .*Download it first"),
        ("IMAGENET1K_V1", "no such file; .*Give imagenet"),
        ("MahmoodLab/UNI", "--model hf-hub:MahmoodLab/UNI"),
        ("", "no such file"),
    ):
        with pytest.raises(UsageError, match=words):
            find_weights(str(given), NETWORK)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flax_model.msgpack", "a file of Flax"), ("model.ckpt.data-00000-of-00001", "a part of a TensorFlow"),
        ("net.caffemodel", "a file of Caffe"), ("Net.mlmodel", "a file of Core ML"),
    ],
)  # fmt: skip
def test_files_of_other_frameworks_are_named_by_their_suffix(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x04\x12\x30" + bytes(range(1, 200)))
    with pytest.raises(DataError, match=f"no readable weights .{words}"):
        read_weights(tmp_path / name)


def test_one_part_of_several_is_named(tmp_path: Path) -> None:
    safetensors.torch.save_file({"conv1.weight": torch.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(DataError, match="part 1 of 2; expected all weights in one file"):
        load_initial_weights(create_model(NETWORK), tmp_path / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "vgg19"])
def test_the_listed_number_of_tensors_is_that_of_the_network(name: str) -> None:
    assert sum(not one.endswith(_NO_WEIGHT_ENDINGS) for one in outline(name).state_dict()) == _COMMON_NETWORKS[name]


def test_integers_are_no_weights(tmp_path: Path) -> None:
    torch.save({name: one.to(torch.int8) for name, one in STATE.items()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="with another shape"):
        load_initial_weights(create_model(NETWORK), tmp_path / "w.pth")


def archive(names: Mapping[str, bytes]) -> bytes:
    """A ZIP archive of these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as files:
        for name, content in names.items():
            files.writestr(name, content)
    return stream.getvalue()


def saved(content: object, **options: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def scripted() -> bytes:
    """A TorchScript archive."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still what people publish
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), stream)
    return stream.getvalue()


def numpy_archive() -> bytes:
    """An archive of NumPy."""
    stream = io.BytesIO()
    np.savez(stream, kernel=np.ones(3))
    return stream.getvalue()


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("1 / 0",)


INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46\n"
SMALL = safetensors.torch.save({"a": torch.ones(100)})
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "LFS pointer": (lambda: POINTER, "a Git LFS pointer.*git lfs pull"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page.*not its page"),
    "answer of a store": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "answer as text": (lambda: b"Entry not found", "text: 'Entry not found'"),
    "index": (lambda: INDEX, "the index of weights in several files"),
    "config": (lambda: b'{"model": "resnet18"}', "a JSON file"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5, a file of Keras"),
    "Keras": (lambda: archive({"config.json": b"{}", "model.weights.h5": b"x"}), "a Keras archive"),
    "SavedModel": (lambda: b"\x08\x01\x12\x50" + bytes(50), "a TensorFlow SavedModel"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite file"),
    "ONNX": (lambda: b"\x08\x08\x12\x07pytorch" + bytes(50), "an ONNX file"),
    "TorchScript": (scripted, "a TorchScript archive.*torch.jit.load.'w.pth'"),
    "NumPy": (numpy_archive, "an archive of NumPy arrays"),
    "zipped": (lambda: archive({"best.pth": b"x"}), "a ZIP archive with best.pth in it.*Unpack"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(50), "compressed with gzip.*Unpack"),
    "empty": (lambda: b"", "an empty file"),
    "zeros": (lambda: bytes(5000), "only zero bytes"),
    "cut safetensors": (lambda: SMALL[:-8], rf"cut off: {len(SMALL) - 8} of {len(SMALL)} bytes"),
    "cut header": (lambda: SMALL[:20], "cut off: 20 bytes"),
    "cut archive": (lambda: saved(STATE)[:-5000], "damaged or cut off"),
    "cut old format": (lambda: saved(STATE, _use_new_zipfile_serialization=False)[:9000], "damaged or cut off"),
    "a whole network": (lambda: saved(SOURCE), r"a whole pickled network of class timm\S+ResNet.*m.state_dict\(\)"),
    "a network in a dict": (lambda: saved({"epoch": 1, "model": nn.Linear(2, 2)}), r"whole.*m\['model'\].state_dict"),
    "an object": (lambda: saved(Settings()), "a pickled object of class .*Settings, not a dict"),
    "one tensor": (lambda: saved(torch.ones(3)), "one tensor without a name"),
    "no tensors": (lambda: saved({"epoch": 1, "loss": 0.1}), "no tensors by name, only 2 other values: epoch, loss"),
    "optimizer": (lambda: saved({"optimizer": OPTIMIZER}), "no tensors by name, only 1 other value: optimizer"),
    "plain pickle": (lambda: pickle.dumps(STATE), "a plain pickle.*python -c \"import pickle, torch"),
    "pickle of NumPy": (lambda: pickle.dumps({"a": np.ones(3)}), "a plain pickle with NumPy arrays"),
    "NumPy arrays": (lambda: saved({"state_dict": {"a": np.ones(3)}}), "NumPy arrays instead of tensors.*as_tensor"),
    "repacked": (lambda: archive({"data.pkl": b"x", "version": b"3"}), "packed again without its folder"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd" + bytes(50), "compressed with zstd.*Unpack"),
    "protocol 2": (lambda: pickle.dumps(STATE, 2), "a plain pickle, not written by torch.save.*import pickle"),
    "protocol 4": (lambda: saved({"a": Settings(), **STATE}, pickle_protocol=4), "pickle protocol 4.*Save it again"),
    "hostile": (lambda: saved({"a": Hostile(), **STATE}), "opening it would run builtins.eval"),
    "random": (lambda: struct.pack("<8I", *range(3_000_000_000, 3_000_000_008)), "an unknown format"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_weight_file_is_named_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    make, words = REFUSED[name]
    (tmp_path / "w.pth").write_bytes(make())
    capfd.readouterr()
    with pytest.raises(DataError, match=f"w.pth: no readable weights .*{words}") as caught:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(caught.value) and "\033" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the conversion in timm
@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos"])
def test_position_embeddings_are_resized_to_another_input_size_as_timm_does(tmp_path: Path, name: str) -> None:
    side = timm.models.get_pretrained_cfg(name).input_size[-1]
    there = timm.create_model(name, num_classes=2)
    safetensors.torch.save_file(there.state_dict(), tmp_path / "w.safetensors")
    model = create_model(name, side=side - 64)
    assert load_initial_weights(model, tmp_path / "w.safetensors") == []
    source = {"file": str(tmp_path / "w.safetensors"), "num_classes": 2}
    expected = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=source, num_classes=2, img_size=side - 64
    ).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
