"""Test the architecture: imports go one way, commands start without heavy libraries, public names have docstrings."""

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
from claris_kaggle.cli.main import _COMMANDS
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
    commands = {f"claris_kaggle.cli.{verb}" for verb in _COMMANDS}
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


# The command line calls these of every verb by their names.
OF_EVERY_COMMAND = {"run", "add_arguments", "HELP"}


def own_names(path: Path) -> set[str]:
    """Return the functions, classes and constants that a module defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in names if not name.startswith("__")}


def names_used_by(path: Path) -> set[tuple[str, str]]:
    """Return what a file takes from modules of the package, as (module, name)."""
    used, aliases = set(), {}
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                used.add((node.module, alias.name))
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            used.add((aliases[node.value.id], node.attr))
    return used


def names_of_other_packages() -> set[tuple[str, str]]:
    """Return what is used outside its own package: by others, kernels and the installed command, or is public."""
    used = {(f"claris_kaggle.{module}", name) for name, module in claris_kaggle.PUBLIC.items()}
    used |= set(re.findall(r"= (claris_kaggle[\w.]*):(\w+)", (ROOT / "setup.py").read_text("utf-8")))
    for path in (ROOT / "kernels").rglob("*.py"):
        used |= names_used_by(path)
    for module in INSIDE:
        package = module.split(".")[1]
        used |= {(home, name) for home, name in names_used_by(MODULES[module]) if home.split(".")[1:2] != [package]}
    return used


def test_what_no_other_package_uses_is_private() -> None:
    used = names_of_other_packages()
    for module in set(INSIDE) - {"claris_kaggle.version"}:
        exempt = OF_EVERY_COMMAND if module.startswith("claris_kaggle.cli.") else set()
        names = {name for name in own_names(MODULES[module]) - exempt if not name.startswith("_")}
        assert {name for name in names if (module, name) not in used} == set(), module


def test_no_other_package_uses_what_is_private() -> None:
    private = {(module, name) for module, name in names_of_other_packages() if name.startswith("_")}
    assert {(module, name) for module, name in private if not name.startswith("__")} == set()


def test_no_two_modules_define_the_same_name() -> None:
    homes: dict[str, list[str]] = {}
    for module in INSIDE:
        for name in own_names(MODULES[module]) - OF_EVERY_COMMAND:
            homes.setdefault(name.lstrip("_"), []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_each_package_says_what_others_use_of_it() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module.count(".") == 1 and module != "claris_kaggle.cli":
            public = {
                name
                for part in MODULES
                if part.startswith(f"{module}.") and part.count(".") == 2
                for name in own_names(MODULES[part])
                if not name.startswith("_")
            }
            told = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            rows = re.sub(r"- `\w+`:", "", told.split("\n\n")[-1])
            assert set(re.findall(r"`(\w+)`", rows)) == public, module


def test_help_and_wrong_use_load_nothing_heavy() -> None:
    """All in one process: a module that any of them loads stays loaded."""
    uses = ((["--help"], 0), (["train", "--help"], 0), (["nonsense"], 2), (["train"], 2), (["models"], 0))
    program = (
        "import sys\nfrom claris_kaggle.cli.main import main\n"
        f"for arguments, wanted in {uses!r}:\n"
        "    code = main(arguments)\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert (code, loaded) == (wanted, []), (arguments, code, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def test_every_verb_has_help_with_an_example(call: Callable[..., tuple[int, str, str]]) -> None:
    from claris_kaggle.cli.main import _COMMANDS

    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} == {*_COMMANDS, "__init__", "main", "options"}
    for verb in _COMMANDS:
        code, shown, _ = call(verb, "--help")
        assert code == 0 and f"example:\n  claris {verb}" in shown
    assert call("--version")[0] == 0


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


def test_what_was_typed_wrongly_is_one_line_with_a_way_on(call: Callable[..., tuple[int, str, str]]) -> None:
    for arguments, words in (
        (["trian"], "unknown command 'trian'; did you mean train? See"),
        (
            ["folds", "--data", "d", "--out", "f.csv", "--slide-map", "x"],
            "did you mean --slides? See claris folds --help",
        ),
        (["train", "--epochs", "six"], "invalid int value: 'six'"),
        (["train"], "the following arguments are required: --data"),
        (["pack", "--data", "x", "--jobs", "-1"], "--jobs"),
        (["train", "--normalise", "0.5/0.2"], "or numbers such as 0.5,0.5,0.5/0.2,0.2,0.2"),
        (["submit", "x.csv", "--poll", "-1"], "-1 is not a positive time"),
    ):
        code, shown, said = call(*arguments)
        assert code == 2 and words in said and "--help" in said
        assert said.count("\n") == 1 and shown == ""
    assert "demo" in call()[1]


def test_help_as_a_word_is_the_help_of_the_command(call: Callable[..., tuple[int, str, str]]) -> None:
    assert call("help", "train") == call("train", "--help") != call("help") == call("--help")
    code, shown, said = call("help", "trian")
    assert (code, shown) == (2, "") and "did you mean train?" in said
    code, _, said = call("train", "--data", "d", "--fold", "folds/five.csv", "--run", "r")
    assert code == 2 and "invalid int value: 'folds/five.csv'; did you mean --folds? See" in said


def test_a_tilde_in_a_path_is_the_home_folder_and_no_folder_of_that_name(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    _, _, said = call("submission", "check", "~/s.csv", "--data=~/data")
    assert f"claris: {tmp_path}/data: no " in said
