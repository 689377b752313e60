"""The house: imports go one way, start-up is light, public names are what they say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import claris_kaggle
from tests.conftest import ROOT, environment

PACKAGE = ROOT / "claris_kaggle"
# A module may import those before it, except that tables and pixels never meet.
LAYERS = {
    "foundations": ["errors", "platforms", "files", "paths", "console", "presets", "config", "stopping"],
    "tables": [
        "csv_text", "tables", "metrics", "calibration", "resampling", "uncertainty", "folds", "split", "predictions",
        "members", "blending", "ensemble", "submission", "comparison", "ledger",
    ],
    "pixels": [
        "workers", "patches", "images", "pack", "tissue", "synthetic", "transforms", "tta", "dataset", "equivariance",
        "layout", "model", "distributed", "rank_process", "jobs", "cudnn_fallback", "checkpoint", "mixing", "precision",
        "engine", "rates", "inference", "evidence", "trained", "pictures", "onnx_file",
    ],
    "verbs": [
        "prepare", "check", "run", "train", "predict", "pages", "figures", "gallery", "report", "classify",
        "classify_page", "export", "demo",
    ],
    "edges": [
        "inputs", "machine", "session", "bundle", "wire_log", "client_calls", "kaggle_client", "kaggle_api", "fetch",
        "kernels", "session_progress", "pushes", "submit", "plan", "quota", "probe", "findings", "account", "launch",
        "doctor", "uploads", "guard", "serve", "cli", "__main__",
    ],
}  # fmt: skip
ORDER = [module for layer in LAYERS.values() for module in layer]
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
HEAVY = ("torch", "torchvision", "timm", "albumentations", "sklearn", "pandas", "numpy", "kaggle", "joblib", "scipy")
NOT_IN = {"foundations": {*HEAVY}, "tables": {"torch", "timm", "albumentations"}, "pixels": {"pandas", "sklearn"}}


def imports_of(path: Path) -> set[str]:
    """Everything that the file imports, late imports too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "claris_kaggle":
            found |= {f"claris_kaggle.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def modules() -> dict[str, Path]:
    return {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def test_every_module_has_a_layer() -> None:
    assert set(modules()) | {"cli"} == set(ORDER)


def test_the_table_of_rooms_has_every_module_in_the_order_of_imports() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rows = text.split("| layer | module | holds |")[1].split("\n\n")[0].splitlines()[2:]
    named = [name for row in rows for name in re.findall(r"`(\w+)/?`", row.split("|")[2])]
    assert named == [module for module in ORDER if module != "__main__"]
    layers = [row.split("|")[1].split("(")[0].strip() for row in rows]
    assert [layer for layer in layers if layer] == list(LAYERS)


@pytest.mark.parametrize("module", [name for name in ORDER if name != "cli"])
def test_imports_go_one_way(module: str) -> None:
    layer = LAYER_OF[module]
    for name in imports_of(modules()[module]):
        top, *rest = name.split(".")
        assert top not in NOT_IN.get(layer, set()), f"{module} imports {name}"
        if top == "claris_kaggle" and rest and rest[0] != "__version__":
            assert ORDER.index(rest[0]) < ORDER.index(module), f"{module} imports {name}"
            assert {layer, LAYER_OF[rest[0]]} != {"tables", "pixels"}, f"{module} imports {name}"


def test_help_and_wrong_use_load_nothing_heavy() -> None:
    for arguments, code in ((["--help"], 0), (["train", "--help"], 0), (["nonsense"], 2), (["train"], 2)):
        program = (
            "import sys\nfrom claris_kaggle.cli import main\n"
            f"code = main({arguments!r})\n"
            f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
            f"assert (code, loaded) == ({code}, []), (code, loaded)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr


def test_every_verb_has_help_with_an_example() -> None:
    from claris_kaggle.cli import VERBS, main

    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} == {*VERBS, "__init__", "options"}
    for verb in VERBS:
        program = f"from claris_kaggle.cli import main; main(['{verb}', '--help'])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
        assert f"example:\n  claris {verb}" in done.stdout
    assert main(["--version"]) == 0


def test_each_public_name_is_there_and_documented() -> None:
    for name in claris_kaggle.PUBLIC:
        assert getattr(claris_kaggle, name).__doc__, name
    typed = re.findall(r"from claris_kaggle\.(\w+) import (\w+) as (\w+)", (PACKAGE / "__init__.py").read_text("utf-8"))
    assert {name: module for module, name, _ in typed} == claris_kaggle.PUBLIC
    assert dir(claris_kaggle) == claris_kaggle.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        claris_kaggle.nothing  # noqa: B018


def code_lines(function: ast.FunctionDef) -> int:
    """The lines of a function without its docstring."""
    told = ast.get_docstring(function, clean=False)
    return (function.end_lineno or 0) - function.lineno + 1 - (len(told.splitlines()) if told else 0)


def test_modules_and_functions_stay_short() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node) <= 40, f"{path.name}: {node.name}"


def test_what_was_typed_wrongly_is_one_line_with_a_way_on() -> None:
    from tests.conftest import claris

    for arguments, words in (
        (["trian"], "no verb 'trian'; did you mean train? See"),
        (
            ["folds", "--data", "d", "--out", "f.csv", "--slide-map", "x"],
            "did you mean --slides? See claris folds --help",
        ),
        (["train", "--epochs", "six"], "invalid int value: 'six'"),
        (["train"], "the following arguments are required: --data"),
        (["pack", "--data", "x", "--jobs", "-1"], "--jobs"),
        (["submit", "x.csv", "--poll", "-1"], "-1 is no time to wait"),
    ):
        done = claris(*arguments)
        assert done.returncode == 2 and words in done.stderr and "--help" in done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert "demo" in claris().stdout


def test_a_tilde_in_a_path_is_the_home_folder_and_no_folder_of_that_name(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    _, _, said = call("submission", "check", "~/s.csv", "--data=~/data")
    assert f"claris: {tmp_path}/data: no " in said
