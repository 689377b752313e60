"""Test the API reference: docstrings of all public names are complete, and the pages are built without a warning."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import claris_kaggle
from tests.conftest import ROOT, environment

# A first line that begins with one of these tells an act; any other tells what comes back.
ACTS = ("Write", "Put", "Train", "Predict", "Split", "Generate", "Check", "Refuse", "Combine", "Average", "Add", "Make")


def called(function: Callable[..., Any], module: ModuleType) -> list[Any]:
    """The functions of ours that the function calls by name."""
    found = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Call):
            names = ast.unparse(node.func).split(".")
            one: Any = module
            for name in names:
                one = getattr(one, name, None)
            if inspect.isfunction(one) and one.__module__.startswith("claris_kaggle."):
                found.append(one)
    return found


def raises(function: Callable[..., Any]) -> bool:
    """Whether the function, or one that it calls, raises or says so."""
    module = sys.modules[function.__module__]
    text = inspect.getsource(function)
    return bool(re.search(r"^ +raise ", text, re.M)) or any(
        "Raises:" in (one.__doc__ or "") for one in called(function, module)
    )


def faults_of_function(function: Callable[..., Any]) -> list[str]:
    """What the docstring leaves out: an argument, what comes back, what is raised."""
    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    faults = [] if doc else ["no docstring"]
    words = set(re.findall(r"\w+", doc))
    faults += [f"argument {name}" for name in signature.parameters if name not in {*words, "self", "cls"}]
    returns = signature.return_annotation not in ("None", None, inspect.Signature.empty)
    if returns and doc.startswith(ACTS) and not re.search(r"\bReturns?:|\breturns?\b|; the ", doc):
        faults.append("what comes back")
    if raises(function) and "Raises:" not in doc:
        faults.append("what is raised")
    return faults


def faults_of_class(kind: type[Any]) -> list[str]:
    """What its docstring and those of its public methods leave out."""
    doc = inspect.getdoc(kind) or ""
    fields = getattr(kind, "__dataclass_fields__", {})
    told = {name for name, one in fields.items() if one.metadata.get("help")}
    faults = [f"field {name}" for name in fields if name not in {*re.findall(r"\w+", doc), *told}]
    for name, member in vars(kind).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or member
        if not name.startswith("_") and inspect.isfunction(getattr(function, "__func__", function)):
            faults += [f"{name}: {fault}" for fault in faults_of_function(getattr(function, "__func__", function))]
    return faults if doc else ["no docstring", *faults]


def test_every_public_name_has_a_complete_docstring() -> None:
    faults = {}
    for name in claris_kaggle.PUBLIC:
        one = getattr(claris_kaggle, name)
        faults[name] = faults_of_class(one) if inspect.isclass(one) else faults_of_function(one)
    complete = sum(not found for found in faults.values())
    print(f"public names with complete docstrings: {complete} of {len(faults)} ({complete / len(faults):.0%})")
    assert not {name: found for name, found in faults.items() if found}


@pytest.mark.slow
def test_the_site_has_every_page_and_public_name_and_no_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "docs/make_site.py", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    reference = (tmp_path / "api" / "claris_kaggle.html").read_text("utf-8")
    assert not [name for name in claris_kaggle.PUBLIC if f'id="{name}"' not in reference]
    pages = [path for path in tmp_path.rglob("*.html") if path.parent.name != "api"]
    assert {path.stem for path in pages} >= {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    for page in pages:
        links = re.findall(r'(?:href|src)="(?![a-z]+:)([^"#]+)', page.read_text("utf-8"))
        assert len(links) > 5 and not [link for link in links if not (page.parent / link).exists()], page.name
