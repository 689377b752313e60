"""Test the package: every import is declared, every dependency is used, and the wheel works without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

import claris_kaggle
from claris_kaggle.cli.main import _PIP_NAMES, _explain_missing_package
from tests.conftest import ROOT, environment
from tests.repo.test_layers import PACKAGE, imports_of

# Not imported by us, but by what we import.
FOR_OTHERS = {"six"}
# torchvision reaches us through timm, whose networks import it; `claris doctor` proves that it fits torch.
WHERE = {
    "torch": "training/learner",
    "torchvision": "doctor",
    "timm": "models/factory",
    "albumentations": "data/augment",
    "numpy": "evaluation/metrics",
    "pandas": "data/tables",
    "scikit-learn": "data/fold_split",
    "kaggle": "kaggle/client_process",
    "joblib": "data/parallel",
}


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """What setup.py tells setuptools."""
    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **values: kept.update(values))
        exec(compile((ROOT / "setup.py").read_text("utf-8"), "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return kept


def names(requirements: list[str]) -> set[str]:
    """The packages that are required."""
    return {re.split(r"[<>=!~ \[;]", one)[0].lower().replace("_", "-") for one in requirements}


def packages_of(path: Path) -> set[str]:
    """The packages that the file imports, as they are called on PyPI."""
    tops = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names) - {"claris_kaggle"}
    return {_PIP_NAMES.get(top, top.lower().replace("_", "-")) for top in tops}


def test_every_imported_package_is_declared_and_every_declared_one_is_imported(declared: dict[str, Any]) -> None:
    imported = set().union(*(packages_of(path) for path in PACKAGE.rglob("*.py")))
    always = names(declared["install_requires"])
    extras = set().union(*(names(declared["extras_require"][extra]) for extra in ("report", "serve", "onnx")))
    assert imported <= always | extras
    assert always - FOR_OTHERS <= imported
    for package, module in WHERE.items():
        assert package in always and package in packages_of(PACKAGE / f"{module}.py")


def test_the_extras_are_there_and_the_version_stands_in_one_place(declared: dict[str, Any]) -> None:
    assert set(declared["extras_require"]) == {"report", "serve", "onnx", "peers", "dev"}
    assert names(declared["extras_require"]["report"]) <= names(declared["install_requires"])
    assert declared["version"] == claris_kaggle.__version__
    for path in [*PACKAGE.rglob("*.py"), ROOT / "setup.py", ROOT / "pyproject.toml"]:
        assert declared["version"] not in path.read_text("utf-8") or path == PACKAGE / "version.py"


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    hidden = "import sys; sys.modules['shtab'] = None; from claris_kaggle.cli.main import main; sys.exit(main({}))"
    command = [sys.executable, "-c", hidden.format(["completion", "bash"])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "claris: the Python package shtab is not installed. Install it: pip install shtab\n"
    assert str(_explain_missing_package(ModuleNotFoundError(name="sklearn.metrics"))).endswith(
        "pip install scikit-learn"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that both are whole."""
    source = tmp_path_factory.mktemp("source")
    for name in ("claris_kaggle", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_the_kernels_scripts(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=PACKAGE, capture_output=True, text=True, check=True).stdout
    wanted = {f"claris_kaggle/{name}" for name in tracked.splitlines() if (PACKAGE / name).exists()}
    wanted |= {f"claris_kaggle/kernel_scripts/{job}/{job}.py" for job in ("train", "predict", "ensemble")}
    assert wanted and not wanted - held and "claris_kaggle/py.typed" in held


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}

    def run(*arguments: object, code: int = 0) -> str:
        command = [tmp_path / "venv" / "bin" / "claris", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=180)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    assert run("--version") == f"claris {claris_kaggle.__version__}\n"
    assert "claris launch first" in run("--help")
    missing = run("launch", "first", "--dry-run", code=1)  # nothing but the wheel is here
    assert re.search(r"the Python package \S+ is not installed", missing)

    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + os.linesep)
    program = "from claris_kaggle import generate; generate(Path('data'), train=60, test=20, slides=6)"
    subprocess.run(
        [python, "-c", "from pathlib import Path; " + program], cwd=tmp_path, env=clean, check=True, timeout=180
    )
    explain = (
        "from claris_kaggle.cli.main import _explain_missing_package as explain\n"
        "for name in ('jinja2', 'starlette', 'uvicorn.config'): print(explain(ModuleNotFoundError(name=name)))"
    )
    done = subprocess.run([python, "-c", explain], cwd=tmp_path, env=clean, capture_output=True, text=True)
    extras = re.findall(r"pip install 'claris_kaggle\[(\w+)\]'\n", done.stdout)
    assert extras == ["report", "serve", "serve"], done.stderr
    assert "fold 1:" in run("folds", "--data", "data", "--out", "folds.csv", "--k", "2")
    assert f"the library at v{claris_kaggle.__version__}" in run("launch", "first", "--dry-run")
    run("push", "train", "--build-only", "kernel", "--user", "me")
    compile((tmp_path / "kernel" / "train.py").read_text(), "train.py", "exec")
