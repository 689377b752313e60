"""Test launches of several runs: plans and their errors, two sessions at a time, kills, and the ensemble."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.core.errors import KaggleError, RunError, UsageError
from claris_kaggle.core.files import read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.ensembling.ledger import read_ledger
from claris_kaggle.kaggle import api, plan_file
from claris_kaggle.kaggle.launch_state import Plan
from claris_kaggle.kaggle.plan_file import read_plan
from claris_kaggle.kaggle.plan_launch import run_plan
from claris_kaggle.training.setup import new_config
from tests.conftest import run_files
from tests.support.kaggle_double import FakeKaggle, Files

Call = Callable[..., tuple[int, str, str]]
TWO = """
description = "two small runs"
[[run]]
name = "first"
model = "tiny"
weights = "none"
epochs = 2
[[run]]
name = "second"
model = "tiny"
weights = "none"
epochs = 2
seeds = [7]
"""


def add_noise(files: Files, seed: int) -> Files:
    """Return the output of another run over the same folds, whose predictions differ by noise."""
    changed = {}
    for name, content in files.items():
        if name.endswith(("oof.csv", "test.csv")):
            header, *rows = content.decode().splitlines()
            noise, column = random.Random(f"{seed} {name}"), header.split(",").index("probability")
            cells = [row.split(",") for row in rows]
            for row in cells:
                row[column] = f"{0.7 * float(row[column]) + 0.3 * noise.random():.7g}"
            content = "\n".join([header, *map(",".join, cells)]).encode() + b"\n"
        changed[name] = content
    return changed


@pytest.fixture
def two_runs(trained: FakeKaggle, finished: RunDir, tmp_path: Path) -> FakeKaggle:
    """Write a plan of two runs. Return a server whose kernels write the finished run, or another one for a seed."""

    def produce(settings: dict[str, object]) -> tuple[Files, str]:
        files = run_files(finished)
        return (add_noise(files, 7) if "--seed" in settings["flags"] else files), "complete"  # type: ignore[operator]

    trained.produce = produce
    trained.statuses = ["RUNNING", "COMPLETE"]
    (tmp_path / "two.toml").write_text(TWO)
    return trained


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, the slowest step of a launch."""
    monkeypatch.setattr("claris_kaggle.kaggle.plan_launch._write_runs_report", lambda *arguments: None)


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Return a function that launches the plan of two runs, and resumes it when called again."""
    plan = read_plan(str(tmp_path / "two.toml"), Plan(name="gold")) if (tmp_path / "two.toml").exists() else None
    assert plan is not None
    return lambda: run_plan(plan, tmp_path / "gold", tmp_path / "ledger.csv", poll=0)


@pytest.mark.usefixtures("quick")
def test_a_plan_ends_in_the_ensemble_of_its_runs_and_does_nothing_twice(
    two_runs: FakeKaggle, call: Call, tmp_path: Path, generated: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two_runs.session_limit = 2
    launch = ["launch", "gold", "--plan", "two.toml", "--poll", 0, "--ledger", "ledger.csv"]
    code, shown, said = call(*launch)
    assert code == 0 and shown.startswith("gold: submission 1000 complete, OOF AUC 0."), said
    assert sorted(two_runs.kernels) == ["me/claris-gold-first-all", "me/claris-gold-second-all"]
    assert two_runs.kernels["me/claris-gold-second-all"][0].settings["flags"][-2:] == ["--seed", "7"]
    root = tmp_path / "runs" / "gold"
    places = [root / "first", root / "second"]
    by_hand = ["ensemble", *places, "--data", generated.root, "--out", "by-hand.csv", "--method", "auto", "--json"]
    code, shown, _ = call(*by_hand)
    assert code == 0 and two_runs.uploads == [(root / "submission.csv").read_bytes()]
    assert (tmp_path / "by-hand.csv").read_bytes() == (root / "submission.csv").read_bytes()
    members = read_json(root / "ensemble" / "metrics.json")["ensemble"]["members"]
    assert members == json.loads(shown)["ensemble"]["members"] and [*members] == ["first", "second"]
    report = (root / "report.html").read_text()
    assert "What each run adds to the mean" in report and f"{members['second']['difference']:+.4f}" in report
    assert [line.runs for line in read_ledger(tmp_path / "ledger.csv")] == ["first second"]
    monkeypatch.setattr("claris_kaggle.kaggle.plan_launch._write_runs_report", lambda *arguments: None)
    assert call(*launch)[0] == 0
    assert two_runs.count("SaveKernel") == 2 and two_runs.count("CreateSubmission") == 1


class KilledError(BaseException):
    """The simulated end of the process between two requests."""


@pytest.mark.usefixtures("quick", "without_report")
def test_a_plan_killed_after_every_request_repeats_nothing(
    two_runs: FakeKaggle, tmp_path: Path, start: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, left = api._call_once, [0]

    def ask_until_killed(*arguments: object, **named: object) -> object:
        answer = ask(*arguments, **named)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] == 0:
            raise KilledError
        return answer

    monkeypatch.setattr(api, "_call_once", ask_until_killed)
    kills = 0
    while kills < 40:
        left[0] = kills % 5 + 2
        try:
            start()
            break
        except KilledError:
            kills += 1
    assert 4 <= kills < 40
    assert [len(versions) for versions in two_runs.kernels.values()] == [1, 1] and len(two_runs.submissions) == 1
    assert [line.public for line in read_ledger(tmp_path / "ledger.csv")] == ["0.97123"]


@pytest.mark.usefixtures("quick", "without_report")
def test_when_the_week_is_used_up_nothing_more_is_pushed_and_the_same_command_goes_on(
    two_runs: FakeKaggle, tmp_path: Path
) -> None:
    (tmp_path / "more.toml").write_text(TWO.replace("seeds = [7]", "seeds = [7, 8, 9]"))
    plan = read_plan(str(tmp_path / "more.toml"), Plan(name="gold"))

    def use_up(route: str, number: int) -> None:
        if route.endswith("/SaveKernel") and two_runs.count("SaveKernel") == 2:
            two_runs.hours_used = two_runs.hours_a_week

    two_runs.on_request = use_up
    where = (tmp_path / "gold", tmp_path / "ledger.csv")
    with pytest.raises(KaggleError, match="quota") as caught:
        run_plan(plan, *where, poll=0)
    assert f"Run {plan.command()} when the quota resets" in caught.value.hint
    assert two_runs.count("SaveKernel") == 3 and len(two_runs.kernels) == 2 and two_runs.submissions == []
    assert {"first", "second-seed7"} <= {path.parents[2].name for path in where[0].glob("sessions/*/parts/all/run")}
    two_runs.on_request, two_runs.hours_used = lambda route, number: None, 0.0
    assert run_plan(plan, *where, poll=0)["status"] == "COMPLETE"
    assert [len(versions) for versions in two_runs.kernels.values()] == [1] * 4 and two_runs.most_active == 2


@pytest.mark.usefixtures("quick", "without_report")
def test_runs_over_other_folds_are_not_combined(
    two_runs: FakeKaggle, tmp_path: Path, start: Callable[[], dict[str, str]]
) -> None:
    produce = two_runs.produce

    def with_other_folds(settings: dict[str, object]) -> tuple[Files, str]:
        files, status = produce(settings)
        if "--seed" in settings["flags"]:  # type: ignore[operator]
            config = json.loads(files["run/config.json"]) | {"folds_sha256": "0" * 64}
            files["run/config.json"] = json.dumps(config).encode()
        return files, status

    two_runs.produce = with_other_folds
    with pytest.raises(RunError, match="second: trained on other folds than first"):
        start()
    assert two_runs.submissions == []


@pytest.mark.usefixtures("quick", "without_report")
def test_a_started_plan_may_get_more_runs_but_not_lose_one(
    two_runs: FakeKaggle, tmp_path: Path, start: Callable[[], dict[str, str]]
) -> None:
    start()
    path = tmp_path / "two.toml"
    path.write_text(TWO.replace('name = "second"', 'name = "third"'))
    with pytest.raises(RunError, match="which has second; runs can only be added to a plan"):
        run_plan(read_plan(str(path), Plan(name="gold")), tmp_path / "gold", tmp_path / "ledger.csv", poll=0)
    path.write_text(TWO.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(RunError, match=r"started with another plan \(flags\)"):
        run_plan(read_plan(str(path), Plan(name="gold")), tmp_path / "gold", tmp_path / "ledger.csv", poll=0)
    assert two_runs.count("SaveKernel") == 2


BAD = {
    "a key with a typing error": ("epochs = 2", "epocs = 2", "run first: unknown key 'epocs'. Did you mean epochs?"),
    "a seed instead of seeds": ("seeds = [7]", "seed = 7", "unknown key 'seed'. Did you mean seeds?"),
    "no model": ('model = "tiny"', "", 'run first: no model; expected model = "..."'),
    "the same name twice": ('"second"', '"first"', "two runs have the name first"),
    "a name that is a folder of the launch": ('"second"', '"sample"', "invalid name 'sample'"),
    "a name that is too long": ('"second"', f'"{"x" * 40}"', "characters too long"),
    "no runs": (TWO, "description = 'none'", "no runs; expected at least one [[run]] table"),
    "a run that is no list": (TWO, "[run]\nname = 'a'", "expected [[run]] before each run"),
    "a line that is not TOML": ("epochs = 2", "epochs = ", "invalid TOML: Invalid value (at line 7, column 10)"),
    "a value of another type": ("epochs = 2", "epochs = 'two'", "run first: --epochs is 'two'; expected int"),
    "a value out of range": ("epochs = 2", "epochs = 2\nlr = 7.0", "run first: --lr is 7.0"),
    "folds without a fold": ("seeds = [7]", "folds = [[0, 2]]", "run second: folds is [[0, 2]]"),
    "fewer folds than a session makes": ("seeds = [7]", "folds = [[0, 1], [2]]", "lists with each of the folds 0 to 4"),
    "truth values as folds": ("seeds = [7]", "folds = [[false, true, 2, 3, 4]]", "run second: folds is"),
    "a description that is a list": ('"two small runs"', "['x']", "description is ['x']; expected a text"),
    "two starting weights": ("seeds = [7]", "weights_from = 'me/w/a.pth'", "training starts from only one of them"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_in_a_plan_is_one_line_that_names_the_run(name: str, tmp_path: Path) -> None:
    old, new, words = BAD[name]
    (tmp_path / "bad.toml").write_text(TWO.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read_plan(str(tmp_path / "bad.toml"), Plan(name="gold"))
    assert words in str(caught.value) and "bad.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_of_another_format_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("run:\n  - name: first\n")
    with pytest.raises(UsageError, match="plan.yaml: a YAML file; plans are TOML files"):
        read_plan(str(tmp_path / "plan.yaml"), Plan(name="gold"))


def test_the_folds_of_a_users_own_fold_file_are_not_counted() -> None:
    assert plan_file._read_parts([[0, 1], [2]], 0, "run one") == ((0, 1), (2,))


def test_what_a_plan_cannot_have_is_refused_before_anything_is_pushed(
    kaggle: FakeKaggle, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "small.toml"
    for run, words in (
        ('model = "levit_128s"\nresolution = 100', "run one: --model levit_128s does not accept inputs of 100 x 100"),
        ('model = "densenet12"', "run one: --model is 'densenet12'; unknown timm model"),
        ('model = "tiny"', "run one: --weights imagenet: timm has no ImageNet weights for tiny"),
        ('model = "some/folder"', "run one: --model local-dir:some/folder: no config.json there"),
        ('model = "resnet18"\nbatch_size = 3', "run one: --batch-size is 3; a session with 2 GPUs needs at least 4"),
    ):
        small.write_text(f'[[run]]\nname = "one"\n{run}\n')
        code, _, said = call("launch", "gold", "--plan", small)
        assert code == 2 and words in said and said.count("\n") == 1, said
    small.write_text('[[run]]\nname = "one"\nmodel = "test_vit"\nresolution = 200\nweights = "none"\n')
    for command in (["launch", "gold", "--plan", small], ["launch", "gold", "--plan", small, "--dry-run"]):
        code, _, said = call(*command)
        assert code == 2 and "run one: --model test_vit reads pieces of 16 x 16 pixels" in said, said
    code, _, said = call("launch", "gold", "--plan", "gild", "--dry-run")
    assert code == 2 and "the plans are gold, silver, starter. Did you mean gold?" in said
    code, _, said = call("launch", "gold", "--plan", "gold", "--epochs", 3)
    assert code == 2 and "--epochs with --plan; the plan sets them for each run" in said
    assert kaggle.seen == []


def test_a_network_of_fixed_size_is_planned_at_the_size_that_a_session_trains_it_at() -> None:
    flags = ("--model", "test_vit")
    assert Plan(name="vit", flags=flags).config() == new_config({"model": "test_vit"})
    sizes = [Plan(name="vit", flags=(*flags, *more)).config().side for more in ((), ("--resolution", "96"))]
    assert sizes == [160, 96]


@pytest.mark.parametrize("name", ["starter", "silver", "gold"])
def test_the_plans_of_the_package_fit_into_a_week(name: str, kaggle: FakeKaggle, call: Call) -> None:
    code, shown, said = call("launch", "first", "--plan", name, "--dry-run", "--json")
    assert code == 0 and kaggle.seen == [], said
    plan = json.loads(shown)
    assert plan["weeks"] == 1 and plan["estimated_hours"] <= plan["weekly_hours"] and plan["description"]
    assert len(plan["runs"]) == (4 if name == "gold" else 1)


def test_a_plan_longer_than_a_week_is_said_to_take_more(call: Call, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(TWO.replace("epochs = 2", "epochs = 60_000"))
    code, shown, _ = call("launch", "first", "--plan", tmp_path / "long.toml", "--dry-run")
    assert code == 0 and "the plan takes 2 weeks" in shown
