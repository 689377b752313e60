"""The house: imports go one way, start-up is light, public names are what they say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import claris_kaggle
from claris_kaggle.cli.main import _VERBS
from tests.conftest import ROOT, environment

PACKAGE = ROOT / "claris_kaggle"


# A package may import those before it, never those after it.
ORDER = (
    "version", "core", "data", "evaluation", "runtime", "models", "inference", "training", "ensembling", "reporting",
    "serving", "kaggle", "demo", "doctor", "cli", "__main__",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "albumentations", "sklearn", "pandas", "numpy", "kaggle", "joblib", "scipy")


NOT_IN = {
    "core": {*HEAVY},
    "evaluation": {"torch", "timm", "albumentations"},
    "models": {"pandas", "sklearn"},
    "runtime": {"pandas", "sklearn"},
    "inference": {"pandas", "sklearn"},
    "training": {"pandas", "sklearn"},
    "ensembling": {"torch", "timm", "albumentations"},
}


def imports_of(path: Path) -> set[str]:
    """Everything that the file imports, late imports too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {node.module}
    return found


def find_modules() -> dict[str, Path]:
    """Return each module of the package by its dotted name."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


MODULES = find_modules()
INSIDE = [name for name in MODULES if name != "claris_kaggle"]


def test_every_package_has_a_place_in_the_order() -> None:
    assert {name.split(".")[1] for name in INSIDE} == set(ORDER)


def test_the_table_of_modules_is_complete_and_in_the_order_of_imports() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rows = text.split("| package | module | holds |")[1].split("\n\n")[0].splitlines()[2:]
    packages, named = [], set()
    for package, modules in (row.split("|")[1:3] for row in rows):
        packages += re.findall(r"`(\w+)`", package)
        named |= {f"claris_kaggle.{packages[-1]}.{name}" for name in re.findall(r"`(\w+)`", modules)}
    assert packages == [name for name in ORDER if (PACKAGE / name).is_dir()]
    commands = {f"claris_kaggle.cli.{verb}" for verb in _VERBS}
    assert named == {name for name in INSIDE if name.count(".") >= 2} - commands


@pytest.mark.parametrize("module", INSIDE)
def test_imports_go_one_way(module: str) -> None:
    package = module.split(".")[1]
    for name in imports_of(MODULES[module]):
        top, *rest = name.split(".")
        assert top not in NOT_IN.get(package, set()), f"{module} imports {name}"
        if top == "claris_kaggle":
            assert rest, f"{module} imports the root; name the module"
            assert ORDER.index(rest[0]) <= ORDER.index(package), f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports_of(path) & MODULES.keys() for name, path in MODULES.items() if name in INSIDE}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_help_and_wrong_use_load_nothing_heavy() -> None:
    for arguments, code in ((["--help"], 0), (["train", "--help"], 0), (["nonsense"], 2), (["train"], 2)):
        program = (
            "import sys\nfrom claris_kaggle.cli.main import main\n"
            f"code = main({arguments!r})\n"
            f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
            f"assert (code, loaded) == ({code}, []), (code, loaded)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr


def test_every_verb_has_help_with_an_example() -> None:
    from claris_kaggle.cli.main import _VERBS, main

    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} == {*_VERBS, "__init__", "main", "options"}
    for verb in _VERBS:
        program = f"from claris_kaggle.cli.main import main; main(['{verb}', '--help'])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
        assert f"example:\n  claris {verb}" in done.stdout
    assert main(["--version"]) == 0


def test_each_public_name_is_there_and_documented() -> None:
    for name in claris_kaggle.PUBLIC:
        assert getattr(claris_kaggle, name).__doc__, name
    typed = re.findall(
        r"from claris_kaggle\.([\w.]+) import (\w+) as (\w+)", (PACKAGE / "__init__.py").read_text("utf-8")
    )
    assert {name: module for module, name, _ in typed} == {**claris_kaggle.PUBLIC, "__version__": "version"}
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
