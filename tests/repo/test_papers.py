"""Test the documentation: every command in it runs, and every flag and file that it names exists."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import claris_kaggle
from claris_kaggle.cli.completion import _list_actions
from claris_kaggle.cli.main import _COMMANDS, _EPILOG, _build_parser, _split_rest
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.synthetic import generate
from tests.conftest import ROOT

Call = Callable[..., tuple[int, str, str]]
PAPERS = [
    "README.md", "docs/own-machine.md", "docs/kaggle.md", "docs/recovering.md", "docs/ensembling.md",
    "kernels/README.md", "folds/README.md", "submissions/README.md",
]  # fmt: skip
TINY = ["--model", "tiny", "--weights", "none", "--epochs", "1", "--threads", "1", "--nproc", "1", "--batch-size", "64"]
# How a verb is run here: what is put behind its own words. A verb that is not named is read by the parser alone,
# as those that need an account are, and the demo, which has tests of its own.
RUN = {
    "check": [], "pack": [], "folds": ["--force", "--k", "2"], "train": TINY, "predict": ["--nproc", "1"],
    "ensemble": [], "submission": [], "report": [], "launch": ["--dry-run"],
    "push": ["--build-only", "kernel", "--user", "me"], "ledger": [], "pseudo": ["--confidence", "0.501"], "runs": [],
    "completion": [],
}  # fmt: skip
STANDS_FOR = {"DIR": "data", "RUN": "runs/first", "RUN_DIR": "runs/first", "YOUR_NAME": "me"}
OTHERS = {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--help", "--version", "--debug"}


def blocks(text: str) -> list[str]:
    """The lines of a page that are to be typed: indented, or fenced."""
    typed, fenced = [], False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    ") or re.match(r"  +(claris|torchrun) ", line):
            typed.append(line.strip())
    return typed


def command(line: str) -> list[str]:
    """The words of a command, without what is said beside it and where its output goes."""
    words = re.split(r"\s#\s|\s{3,}|\s>\s", line)[0]
    return [STANDS_FOR.get(word, word) for word in shlex.split(re.sub(r"\bNAME\b", "first", words))]


def commands(text: str) -> Iterator[list[str]]:
    """What follows `claris` in each command of the page, in their order."""
    for line in blocks(text):
        if line.startswith("claris "):
            yield command(line)[1:]
        elif " -m -- claris_kaggle " in line:
            yield command(line)[command(line).index("claris_kaggle") + 1 :]


def of_verbs() -> dict[str, str]:
    """The text of each verb's help that holds its examples."""
    return {verb: importlib.import_module(f"claris_kaggle.cli.{verb}").__doc__ or "" for verb in _COMMANDS}


@pytest.fixture(scope="module")
def place(few: DataDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the papers' commands find beside them, and finished runs."""
    from claris_kaggle.cli.main import main

    folder = tmp_path_factory.mktemp("papers")
    shutil.copytree(few.root, folder / "data")
    shutil.copy(folder / "data" / "slides.csv", folder / "patch_id_wsi.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(["folds", "--data", "data", "--k", "2", "--out", "folds/five.csv"]) == 0
        for seed, run in enumerate(("first", "second")):
            where = ["--data", "data", "--run", f"runs/{run}"]
            assert main(["train", *where, "--folds", "folds/five.csv", "--seed", str(seed), *TINY]) == 0
            assert main(["predict", *where, "--nproc", "1"]) == 0
        for number, name in enumerate(("submission", "first", "second", "other")):
            run = f"runs/{'second' if number % 2 else 'first'}"
            assert main(["ensemble", run, "--data", "data", "--out", f"{name}.csv"]) == 0
        shutil.copytree("runs/first", "runs/kaggle/run")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, gone into."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place


def carry_out(call: Call, words: list[str]) -> None:
    """Run the command, made small, or read it where it needs an account."""
    verb, (own, rest) = words[0], _split_rest(words)
    _build_parser(verb).parse_args(own)  # as it stands: a flag that has gone fails here
    _build_parser("train").parse_args(["train", "--data", "x", "--folds", "x", "--run", "x", *rest])
    if verb in RUN and "..." not in words:
        code, _, said = call(*own, *(RUN[verb] if "--check" not in own else []), *(["--", *rest] if rest else []))
        assert code == 0, f"claris {' '.join(words)}: {said}"


@pytest.mark.parametrize("paper", PAPERS)
def test_the_commands_of_a_paper_run(paper: str, call: Call, here: Path) -> None:
    for words in commands((ROOT / paper).read_text("utf-8")):
        carry_out(call, words)


@pytest.mark.parametrize("verb", _COMMANDS)
def test_the_examples_of_a_verbs_help_run(verb: str, call: Call, here: Path) -> None:
    found = list(commands(of_verbs()[verb]))
    assert found and all(words[0] in _COMMANDS for words in found)
    for words in found:
        carry_out(call, words)


def test_the_way_through_in_the_help_is_read_by_every_verb() -> None:
    for words in commands(_EPILOG):
        if words[0] != "help":  # `claris help train` is `claris train --help`; test_layers.py compares them
            _build_parser(words[0]).parse_args(words)


def flags_in(text: str) -> set[str]:
    """The long flags that are named."""
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


def test_every_flag_verb_target_and_file_that_is_named_is_there() -> None:
    known = OTHERS.union(*(action.option_strings for action in _list_actions(_build_parser(*_COMMANDS))))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for paper in [*PAPERS, "CONTRIBUTING.md", "ARCHITECTURE.md"]:
        text = (ROOT / paper).read_text("utf-8")
        spoken = " ".join(re.findall(r"`([^`\n]+)`", text))
        assert flags_in(spoken) <= known, paper
        assert set(re.findall(r"\bmake ([a-z-]+)", spoken + " ".join(blocks(text)))) <= targets, paper
        for verb in re.findall(r"\bclaris ([a-z]+)", spoken):
            assert verb in (*_COMMANDS, "help"), f"{paper}: claris {verb}"
        for link in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"<!--.*?-->", "", text, flags=re.S)):
            assert ((ROOT / paper).parent / link).exists(), f"{paper}: {link}"


def test_the_readme_has_every_verb_in_its_table() -> None:
    cells = " ".join(re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text("utf-8"), re.M))
    assert set(_COMMANDS) <= set(re.findall(r"`([a-z]+)", cells))


def test_the_readmes_python_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text("utf-8").split("## From Python\n")[1].split("\n##")[0]
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    exec(compile(code, "README.md", "exec"), {})
    assert 0.0 <= float(capsys.readouterr().out) <= 1.0


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_an_example_runs(
    script: str, few: DataDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer patches than the example asks for."""

    def copy(root: Path, **sizes: int) -> Path:
        inspect.signature(generate).bind(root, **sizes)
        return Path(shutil.copytree(few.root, root))

    monkeypatch.setattr(claris_kaggle, "generate", copy)
    main = runpy.run_path(str(ROOT / "examples" / script))["main"]
    assert main(tmp_path) and "AUC" in capsys.readouterr().out
