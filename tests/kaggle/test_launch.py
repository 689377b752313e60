"""Test launches with the real client and a local server: success, every refusal and fault, and no repeated actions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from claris_kaggle.core.errors import ClarisError, KaggleError, UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.ensembling.ledger import read_ledger
from claris_kaggle.kaggle import api, launch, preflight
from claris_kaggle.kaggle.kernel_output import Kernel, _pull_kernel
from claris_kaggle.kaggle.kernel_push import _push_kernel, new_push_token
from claris_kaggle.kaggle.kernel_source import KernelSettings, _build_bundle, commit_name, compose_kernel
from claris_kaggle.kaggle.launch_state import Plan
from tests.conftest import DEADLINE, ROOT, contents, make_archive, run_files
from tests.support.client_here import ForkedCommand
from tests.support.kaggle_double import CANARY, FINAL, PASSING, FakeKaggle, Fault, Files

Call = Callable[..., tuple[int, str, str]]


def compose_train_kernel(folder: Path, push_token: str = "mark-1", **named: object) -> str:
    settings = KernelSettings(**named)  # type: ignore[arg-type]
    return compose_kernel("train", folder, settings, user="me", slug="claris-train", push_token=push_token)


def push(folder: Path, push_token: str = "mark-1") -> Kernel:
    compose_train_kernel(folder, push_token)
    return _push_kernel(folder, push_token)


def test_the_bundle_is_small_the_same_each_time_and_holds_only_the_library() -> None:
    bundle = _build_bundle()
    assert bundle == _build_bundle() and len(bundle) < 500_000
    names = zipfile.ZipFile(BytesIO(bundle)).namelist()
    kinds = (".py", ".jinja", ".js", ".typed", ".toml", ".csv")
    assert all(name.startswith("claris_kaggle/") and name.endswith(kinds) for name in names)
    assert "claris_kaggle/kaggle/session.py" in names and "claris_kaggle/reporting/templates/report.html.jinja" in names


@pytest.mark.parametrize("job", ["train", "predict", "ensemble"])
def test_each_kernel_is_a_thin_script_whose_title_gives_its_slug(job: str, tmp_path: Path) -> None:
    assert len((ROOT / "kernels" / job / f"{job}.py").read_text().splitlines()) <= 30
    settings = KernelSettings(flags=("--lr", "1e-3"))
    compose_kernel(job, tmp_path / "k", settings, user="me", slug=f"claris-{job}", push_token="m")
    metadata = json.loads((tmp_path / "k" / "kernel-metadata.json").read_text())
    assert metadata["title"].replace(" ", "-") == metadata["id"].split("/")[1]
    assert metadata["competition_sources"] == ["histopathologic-cancer-detection"]
    assert (metadata.get("machine_shape") == "NvidiaTeslaT4") == metadata["enable_gpu"] == (job != "ensemble")
    assert (tmp_path / "k" / f"{job}.py").stat().st_size < 1_000_000
    compile((tmp_path / "k" / f"{job}.py").read_text(), job, "exec")


@pytest.mark.parametrize(
    ("name", "content"), [("train.py", "print(1)"), ("kernel-metadata.json", '{"code_file": "mine.py"}')]
)
def test_a_kernel_of_the_users_own_is_not_overwritten(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=rf"{name}: belongs to another kernel"):
        compose_kernel("train", tmp_path, KernelSettings(), user="me", slug="claris-train", push_token="m")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir() if path.is_file()] == [(name, content)]
    (tmp_path / name).unlink()
    for job in ("train", "train", "predict"):
        compose_kernel(job, tmp_path, KernelSettings(), user="me", slug="claris-train", push_token="m")


def check_token_is_not_stored(kaggle: FakeKaggle, printed: str, folder: Path) -> None:
    """Check that the token was sent to Kaggle, and is in no output and no file."""
    assert any("Basic" in one for one in kaggle.authorizations)
    for needle in (CANARY, "Authorization"):
        assert needle not in printed
    for name, content in contents(folder).items():
        assert CANARY.encode() not in content, name


def test_a_pushed_kernel_is_watched_and_pulled_by_its_version(
    trained: FakeKaggle, call: Call, tmp_path: Path, finished: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client runs in its own process, without its verbose output, which contains the token."""
    monkeypatch.setenv("VERBOSE", "1")
    monkeypatch.setenv("VERBOSE_OUTPUT", "1")
    record = ["--record", tmp_path / "kernels.json"]
    code, shown, said = call("push", "train", "--time-limit", "2h", *record, "--", "--epochs", 3)
    assert (code, shown) == (0, "me/claris-train version 1\n"), said
    request = trained.kernels["me/claris-train"][0].request
    assert request["machineShape"] == "NvidiaTeslaT4" and request["enableGpu"] is True
    assert request["isPrivate"] is True and request["sessionTimeoutSeconds"] == 2 * 3600 + 1800
    assert trained.kernels["me/claris-train"][0].settings["flags"] == ["--epochs", "3"]
    answers = [call("status", *record) for _ in range(3)]
    assert [answer[1].split(": ")[1].strip() for answer in answers] == ["queued", "running", "complete"]
    printed = said + "".join(shown + said for _, shown, said in answers)
    code, shown, said = call("pull", *record, "--out", tmp_path / "out")
    assert code == 0 and "complete" in shown, said
    check_token_is_not_stored(trained, printed + shown + said, tmp_path)
    assert contents(tmp_path / "out" / "run" / "fold0") == {
        name.removeprefix("run/fold0/"): value for name, value in run_files(finished, (0,)).items() if "fold0" in name
    }
    versions = [body.get("versionLabel") for route, body in trained.seen if route.endswith("SessionStatus")]
    assert set(versions) == {"v1"}
    assert not any(route.startswith("CONNECT") for route, _ in trained.seen)


REFUSALS = {
    "an error in a good answer": ({"error": "Kernel source too large"}, "Kernel source too large"),
    "a dataset it does not know": (
        {"versionNumber": 1, "invalidDatasetSources": ["me/nothing"]}, "invalid_dataset_sources me/nothing"
    ),
    "a model it does not know": ({"versionNumber": 1, "invalidModelSources": ["m"]}, "invalid_model_sources m"),
    "a competition not joined": (
        {"versionNumber": 1, "invalidCompetitionSources": ["c"]}, "accept them at https://www.kaggle.com/c/c/rules"
    ),
    "a kernel it does not know": ({"versionNumber": 1, "invalidKernelSources": ["k"]}, "invalid_kernel_sources k"),
    "another name": ({"versionNumber": 1, "ref": "/code/me/other"}, "put the kernel at me/other"),
    "no version": ({}, "has no version number"),
}  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_found_in_every_field_of_an_answer(kaggle: FakeKaggle, tmp_path: Path, name: str) -> None:
    answer, words = REFUSALS[name]
    kaggle.answers["kernels.KernelsApiService/SaveKernel"] = answer
    with pytest.raises(KaggleError) as caught:
        push(tmp_path / "k")
    assert words in str(caught.value) and kaggle.count("SaveKernel") == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", FINAL)
def test_a_refused_push_is_reported_once_and_not_sent_again(kaggle: FakeKaggle, tmp_path: Path, name: str) -> None:
    fault, words = FINAL[name]
    kaggle.faults["SaveKernel"] = [fault]
    with pytest.raises(KaggleError) as caught:
        push(tmp_path / "k")
    assert words in str(caught.value) and kaggle.count("SaveKernel") == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", PASSING)
def test_a_push_that_fails_is_sent_again_and_accepted_only_once(trained: FakeKaggle, tmp_path: Path, name: str) -> None:
    trained.faults["SaveKernel"] = [PASSING[name]]
    assert push(tmp_path / "k").version == 1
    assert len(trained.kernels["me/claris-train"]) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["GetKernelSessionStatus", "ListKernelSessionOutput", "GET"])
@pytest.mark.parametrize("name", ["429", "500", "cut before"])
def test_failed_status_requests_and_downloads_are_tried_again(
    trained: FakeKaggle, tmp_path: Path, method: str, name: str
) -> None:
    trained.statuses = ["COMPLETE"]
    kernel = push(tmp_path / "k")
    trained.faults[method] = [PASSING[name], PASSING[name]]
    assert _pull_kernel(kernel, tmp_path / "out").status == "complete"


@pytest.mark.usefixtures("quick")
def test_a_permanent_failure_ends_after_the_last_retry(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.faults["SaveKernel"] = [Fault(status=503) for _ in range(50)]
    with pytest.raises(KaggleError, match="answered 503"):
        push(tmp_path / "k")
    assert trained.count("SaveKernel") == 4


def test_a_request_without_an_answer_ends_at_the_deadline(kaggle: FakeKaggle) -> None:
    kaggle.faults["GetKernelSessionStatus"] = [Fault(pause=20.0)]
    start = time.monotonic()
    with pytest.raises(KaggleError, match="did not answer within 2 s"):
        api._call_once(api._STATUS, deadline=2.0, ref="me/claris-train", version=1)
    assert time.monotonic() - start < 15


ENDS = {
    "failed": (["ERROR"], "failed: out of luck; RuntimeError: boom"),
    "cancelled": (["CANCEL_ACKNOWLEDGED"], "was cancelled"),
    "running": (["RUNNING"], "is still running"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ENDS)
def test_a_failed_cancelled_or_running_session_without_output_is_not_downloaded(
    trained: FakeKaggle, tmp_path: Path, name: str
) -> None:
    trained.statuses, words = ENDS[name]
    kernel = push(tmp_path / "k")
    version = trained.kernels["me/claris-train"][0]
    version.message = "out of luck"
    version.log = json.dumps([{"stream_name": "stderr", "time": 1, "data": "RuntimeError: boom\n"}])
    version.files.clear()
    with pytest.raises(KaggleError) as caught:
        _pull_kernel(kernel, tmp_path / "out")
    assert words in str(caught.value) and not (tmp_path / "out").exists()


def change_output(change: Callable[[Files], object]) -> Callable[[FakeKaggle], None]:
    def apply(kaggle: FakeKaggle) -> None:
        change(kaggle.kernels["me/claris-train"][0].files)

    return apply


FIRST = "run/fold0/oof.csv"
SPOILED = {
    "a file that climbs out": (lambda files: files.update({"../../evil": b"x"}), "lists a file outside its folder"),
    "an absolute file": (lambda files: files.update({"/tmp/evil": b"x"}), "lists a file outside its folder"),
    "a cut-off file": (lambda files: files.update({FIRST: files[FIRST][:-5]}), "not the file that the session"),
    "another file": (lambda files: files.update({FIRST: files[FIRST][::-1]}), "not the file that the session"),
    "a page for a file": (lambda files: files.update({FIRST: b"<html>403</html>"}), "not the file that the session"),
    "a longer file": (lambda files: files.update({FIRST: files[FIRST] + b"x" * 9}), "not the file that the session"),
    "a file missing": (lambda files: files.pop(FIRST), "1 output files are not listed"),
    "no manifest": (lambda files: files.pop("claris-session.json"), "wrote no claris-session.json"),
    "a manifest of another push": (
        lambda files: files.update({"claris-session.json": files["claris-session.json"].replace(b"mark-1", b"mark-0")}),
        "of another version",
    ),
    "a manifest that is none": (
        lambda files: files.update({"claris-session.json": b"<html>"}),
        "Kaggle sent another file",
    ),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", SPOILED)
def test_only_the_sessions_own_output_replaces_local_files(trained: FakeKaggle, tmp_path: Path, name: str) -> None:
    change, words = SPOILED[name]
    trained.statuses = ["COMPLETE"]
    kernel = push(tmp_path / "k")
    change_output(change)(trained)
    (tmp_path / "out" / "run" / "fold0").mkdir(parents=True)
    (tmp_path / "out" / FIRST).write_text("old")
    before = contents(tmp_path / "out")
    with pytest.raises(ClarisError) as caught:
        _pull_kernel(kernel, tmp_path / "out")
    assert words in str(caught.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.usefixtures("quick")
def test_without_a_token_the_error_says_how_to_get_one_and_nothing_is_sent(
    kaggle: FakeKaggle, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    code, shown, said = call("push", "train")
    assert (code, shown) == (1, "") and "no Kaggle token was found" in said and said.count("\n") == 1
    assert kaggle.seen == []


@pytest.mark.usefixtures("quick")
def test_a_submission_is_checked_sent_only_once_and_scored(
    trained: FakeKaggle, call: Call, finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    out, ledger = tmp_path / "s.csv", tmp_path / "submissions" / "ledger.csv"
    assert call("ensemble", finished.root, "--data", generated.root, "--out", out)[0] == 0
    code, shown, said = call("submit", out, "--data", generated.root, "--ledger", ledger, "--poll", 0)
    assert code == 0 and shown == "submission 1000: complete, public 0.97123, private 0.96543\n", said
    assert trained.uploads == [out.read_bytes()]
    description = trained.submissions[0]["description"]
    assert "finished" in description and "OOF AUC 0." in description and commit_name() in description
    assert call("submit", out, "--data", generated.root, "--ledger", ledger, "--poll", 0)[0] == 0
    assert len(trained.submissions) == 1 and len(read_ledger(ledger)) == 1
    code, shown, _ = call("ledger", "--ledger", ledger)
    assert code == 0 and "0.96543" in shown and "finished" in shown
    code, _, said = call("submit", generated.sample, "--data", generated.root, "--ledger", ledger)
    assert code == 1 and "every value is 0" in said and len(trained.submissions) == 1


@pytest.mark.usefixtures("quick")
def test_a_missing_submission_is_named_before_anything_is_requested(kaggle: FakeKaggle, call: Call) -> None:
    code, _, said = call("submit", "absent.csv")
    assert code == 1 and "absent.csv: file not found" in said and kaggle.seen == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["CreateSubmission", "StartSubmissionUpload"])
@pytest.mark.parametrize("name", ["500", "cut before", "cut after"])
def test_a_submission_that_fails_is_sent_again_and_accepted_only_once(
    trained: FakeKaggle, call: Call, finished: RunDir, generated: DataDir, tmp_path: Path, method: str, name: str
) -> None:
    assert call("ensemble", finished.root, "--data", generated.root, "--out", tmp_path / "s.csv")[0] == 0
    trained.faults[method] = [PASSING[name]]
    code, _, said = call(
        "submit", tmp_path / "s.csv", "--data", generated.root, "--ledger", tmp_path / "l.csv", "--no-wait"
    )
    assert code == 0, said
    assert len(trained.submissions) == 1


@pytest.mark.usefixtures("quick")
def test_a_refused_submission_gives_the_reason(
    trained: FakeKaggle, call: Call, finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    out, ledger = tmp_path / "s.csv", tmp_path / "l.csv"
    submit = ["submit", out, "--data", generated.root, "--ledger", ledger, "--poll", 0]
    assert call("ensemble", finished.root, "--data", generated.root, "--out", out)[0] == 0
    trained.allowed = 0
    code, _, said = call(*submit)
    assert code == 1 and "today's submissions are used up" in said and trained.uploads == []
    trained.limits = {"numAllowedNow": 5}  # another computer takes the last one meanwhile
    code, _, said = call(*submit)
    assert code == 1 and "Submission limit reached. Run the same command after midnight UTC" in said
    trained.allowed, trained.limits = 5, None
    trained.faults["PUT"] = [Fault(status=403) for _ in range(5)]
    code, _, said = call(*submit)
    assert code == 1 and "could not be uploaded" in said
    trained.faults["PUT"] = []
    trained.faults["ListSubmissions"] = [
        *(Fault() for _ in range(4)),  # looks for what the calls before may have sent
        Fault(do=lambda: trained.submissions[0].update(status="ERROR", errorDescription="wrong ids")),
    ]
    code, _, said = call(*submit)
    assert code == 1 and "could not score the submission: wrong ids" in said
    assert read_ledger(ledger)[0].status == "ERROR"


def make_plan(parts: tuple[tuple[int, ...], ...]) -> Plan:
    return Plan(name="first", parts=parts, flags=("--epochs", "2"))


@pytest.mark.usefixtures("quick")
def test_a_launch_ends_in_the_ledger_and_pushes_and_submits_only_once(trained: FakeKaggle, tmp_path: Path) -> None:
    entry = launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    assert entry["public"] == "0.97123" and entry["status"] == "COMPLETE"
    requests = len(trained.seen)
    print(f"requests of a plain launch: {requests}")
    assert trained.count("SaveKernel") == 1 and trained.count("CreateSubmission") == 1 and requests < 25
    again = launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    assert again["ref"] == entry["ref"] and trained.count("SaveKernel") == trained.count("CreateSubmission") == 1
    assert len(read_ledger(tmp_path / "ledger.csv")) == 1


@pytest.mark.usefixtures("quick")
def test_a_launch_per_fold_never_has_more_than_two_sessions(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_DEFAULT_FOLDS", 3)  # the finished run has three
    launch.run_launch(make_plan(((0,), (1,), (2,))), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    assert trained.most_active == 2 and trained.count("SaveKernel") == 3
    assert (tmp_path / "first/run/oof.csv").read_bytes() == finished.oof.read_bytes()
    assert (tmp_path / "first/run/test.csv").read_bytes() == finished.test.read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_session_stopped_by_its_limit_is_the_input_of_the_next(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir
) -> None:
    outcomes = iter([(run_files(finished, (0,)), "stopped"), (run_files(finished), "complete")])
    trained.produce = lambda settings: next(outcomes)
    launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    first, second = trained.kernels["me/claris-first-all"], trained.kernels["me/claris-first-all-r2"]
    assert len(first) == len(second) == 1
    assert second[0].request["kernelDataSources"] == ["me/claris-first-all"]


@pytest.mark.usefixtures("quick")
def test_sessions_that_never_finish_their_folds_end_the_launch(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir
) -> None:
    trained.produce = lambda settings: (run_files(finished, (0,)), "stopped")
    with pytest.raises(KaggleError, match=f"not finished after {launch._MAX_SESSIONS_PER_PART} sessions"):
        launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    assert trained.count("SaveKernel") == launch._MAX_SESSIONS_PER_PART and trained.submissions == []


@pytest.mark.usefixtures("quick")
def test_a_launch_waits_for_other_running_sessions(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.session_limit = 0
    trained.faults["SaveKernel"] = [Fault(), Fault(), Fault(do=lambda: setattr(trained, "session_limit", 2))]
    launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    assert trained.count("SaveKernel") == 3 and "me/claris-first-all" in trained.empty
    assert [len(versions) for versions in trained.kernels.values()] == [1]


@pytest.mark.usefixtures("quick")
def test_a_failed_session_ends_the_launch_and_the_same_command_starts_it_again(
    trained: FakeKaggle, tmp_path: Path
) -> None:
    trained.statuses, produce = ["RUNNING", "ERROR"], trained.produce
    trained.produce = lambda settings: ({}, "")
    arguments = (make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv")
    with pytest.raises(KaggleError, match="version 1 failed"):
        launch.run_launch(*arguments, poll=0)
    trained.statuses, trained.produce = ["COMPLETE"], produce
    assert launch.run_launch(*arguments, poll=0)["status"] == "COMPLETE"
    assert len(trained.kernels["me/claris-first-all"]) == 2 and len(trained.submissions) == 1


@pytest.mark.usefixtures("quick")
def test_a_launch_ends_with_an_error_if_a_session_never_ends(
    trained: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.statuses = ["RUNNING"]
    monkeypatch.setattr(launch, "_MAX_SESSION_WAIT", 0.0)
    with pytest.raises(KaggleError, match="is running for"):
        launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)


@pytest.mark.usefixtures("quick")
def test_another_plan_under_the_same_name_is_refused(trained: FakeKaggle, tmp_path: Path) -> None:
    launch.run_launch(make_plan(((),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    with pytest.raises(ClarisError, match=r"started with another plan \(parts\)"):
        launch.run_launch(make_plan(((0,),)), tmp_path / "first", tmp_path / "ledger.csv", poll=0)


def test_a_dry_run_sends_no_request(kaggle: FakeKaggle, call: Call) -> None:
    code, shown, _ = call("launch", "first", "--per-fold", "--dry-run", "--json")
    plan = json.loads(shown)
    assert code == 0 and len(plan["kernels"]) == 5 and plan["parallel_sessions"] == 2 and kaggle.seen == []
    assert plan["upload_bytes"] < 5_000_000
    assert plan["estimated_hours"] == pytest.approx(sum(one["hours"] for one in plan["kernels"]), abs=0.3)
    for name in ("First", "a/b", "", "x" * 30, "a-", "a--b"):
        assert call("launch", name, "--dry-run")[0] == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--", "--weights", "none", "--model", "tiny", "--resolution", "96"],
            "on two T4s (estimated) for tiny at 96 pixels, 0.000581 GFLOP an image; 1 session of",
        ),
        (
            [
                "--time-limit",
                "1h",
                "--epochs",
                "20000",
                "--",
                "--weights",
                "none",
                "--model",
                "tiny",
                "--resolution",
                "96",
            ],
            "10 sessions of at most 1h (Kaggle's limit is 12h)",
        ),
    ],
)
def test_a_dry_run_says_what_it_costs(call: Call, flags: list[object], words: str) -> None:
    code, shown, said = call("launch", "first", "--dry-run", *flags)
    assert code == 0 and words in shown, said


def test_a_dry_run_of_a_network_that_cannot_be_counted_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "cost", lambda plan: None)
    flags = ["--", "--model", "tiny", "--weights", "none", "--resolution", "128"]
    code, shown, said = call("launch", "first", "--dry-run", *flags)
    assert code == 0 and "not known for tiny at 128 pixels on this machine" in shown, said


def test_an_unknown_network_is_refused_before_the_push(call: Call) -> None:
    code, _, said = call("launch", "first", "--dry-run", "--", "--model", "densenet12")
    assert code == 2 and "unknown timm model. Similar names: densenet121" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--", "--epocs", "3"], "did you mean --epochs?"),
        (["--", "--epochs", "0"], "at least 1"),
        (["--", "--weights", "none", "--tail", "pool", "--resolution", "48"], "leaves no feature map at 48 pixels"),
        (["--", "--fold", "1"], "--fold after --; the session sets this itself"),
        (["--time-limit", "20h"], "Kaggle ends a session at 12h"),
        (["--dataset", "slides"], "--dataset slides"),
        (["--model-input", "me/densenet121/pytorch/default"], "--model-input me/densenet121/pytorch/default"),
    ],
)
def test_what_a_session_would_refuse_is_refused_before_anything_is_pushed(
    kaggle: FakeKaggle, call: Call, flags: list[str], words: str
) -> None:
    for command in (["launch", "first"], ["push", "train"]):
        code, _, said = call(*command, *flags)
        assert code == 2 and words in said and kaggle.seen == []


def start_launch(tmp_path: Path) -> ForkedCommand:
    """Start `claris launch` in its own process."""
    return ForkedCommand(tmp_path, "launch", "first", "--poll", "0", "--epochs", "2")


def launch_through_kills(kaggle: FakeKaggle, tmp_path: Path, kill_at: Callable[[str, int], bool], most: int) -> int:
    """Launch again and again until the launch ends, and return the number of kills.

    The process is killed after each request for which `kill_at` returns True.
    """
    for kills in range(most):
        begin = len(kaggle.seen)
        process = start_launch(tmp_path)

        def hook(route: str, number: int, process: ForkedCommand = process, begin: int = begin) -> None:
            if kill_at(route, number - begin) and process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)

        kaggle.on_request = hook
        _, said = process.communicate(timeout=DEADLINE)
        kaggle.on_request = lambda route, number: None
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, said
    raise AssertionError("the launch did not end")


def check_launched_once(kaggle: FakeKaggle, tmp_path: Path) -> None:
    """Check that there was one push and one submission, and that the ledger has one line with its score."""
    assert [len(versions) for versions in kaggle.kernels.values()] == [1]
    assert len(kaggle.submissions) == 1
    ledger = read_ledger(tmp_path / "submissions/ledger.csv")
    assert [(line.ref, line.public) for line in ledger] == [("1000", "0.97123")]


@pytest.mark.slow
def test_a_launch_killed_after_its_push_and_its_submission_repeats_neither(trained: FakeKaggle, tmp_path: Path) -> None:
    left = ["SaveKernel", "CreateSubmission"]

    def kill_at(route: str, number: int) -> bool:
        return bool(left) and route.endswith("/" + left[0]) and bool(left.pop(0))

    assert launch_through_kills(trained, tmp_path, kill_at, 5) == 2
    check_launched_once(trained, tmp_path)


@pytest.mark.slow
def test_a_launch_killed_after_a_refused_push_takes_another_name(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.session_limit = 0

    def kill_at(route: str, number: int) -> bool:
        refused = trained.session_limit == 0 and route.endswith("/SaveKernel")
        trained.session_limit = 2 if refused else trained.session_limit
        return refused

    assert launch_through_kills(trained, tmp_path, kill_at, 5) == 1
    assert trained.empty == {"me/claris-first-all"} and trained.count("SaveKernel") == 3
    check_launched_once(trained, tmp_path)


@pytest.mark.slow
def test_a_launch_killed_after_every_request_repeats_nothing(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.statuses = ["QUEUED", *["RUNNING"] * 20, "COMPLETE"]  # a long session, so that there is much to kill
    following = iter(range(2, 100))
    current = [1]

    def kill_at(route: str, number: int) -> bool:
        reached = number >= current[0]
        if reached:
            current[0] = next(following)
        return reached

    kills = launch_through_kills(trained, tmp_path, kill_at, 60)
    print(f"kills survived: {kills}")
    assert kills >= 8
    check_launched_once(trained, tmp_path)


def test_the_token_is_in_no_file_log_or_bundle(trained: FakeKaggle, tmp_path: Path) -> None:
    process = start_launch(tmp_path)
    shown, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    check_token_is_not_stored(trained, shown + said, tmp_path)
    assert CANARY.encode() not in _build_bundle()


@pytest.fixture(scope="module")
def archive(handful: DataDir) -> bytes:
    return make_archive(handful)


def test_the_competitions_files_are_downloaded_completely(
    kaggle: FakeKaggle, archive: bytes, call: Call, tmp_path: Path
) -> None:
    kaggle.data["histopathologic-cancer-detection.zip"] = archive
    code, shown, said = call("fetch", "--out", tmp_path / "data")
    assert (code, shown) == (0, f"{tmp_path / 'data'}\n"), said
    assert call("check", "--data", tmp_path / "data")[0] == 0
    requests = len(kaggle.seen)
    assert call("fetch", "--out", tmp_path / "data")[0] == 0 and len(kaggle.seen) == requests
    assert not list(tmp_path.glob(".data.fetching"))


@pytest.fixture
def small(tmp_path: Path, handful: DataDir) -> DataDir:
    data = DataDir(shutil.copytree(handful.root, tmp_path / "data"))
    data.slides.rename(tmp_path / "map.csv")
    return data


@pytest.mark.parametrize(
    ("reference", "packed"),
    [("me/maps", ""), ("me/maps/map.csv", ""), ("me/maps/a/map.csv", ""), ("me/maps/map.csv", "zip"), ("FILE", "")],
)
@pytest.mark.usefixtures("quick")
def test_a_slide_map_is_fetched_checked_and_found_by_folds(
    reference: str, packed: str, kaggle: FakeKaggle, small: DataDir, call: Call, tmp_path: Path
) -> None:
    content = (tmp_path / "map.csv").read_bytes().replace(b"id,wsi", b"patch_id,slide_id") + b"f" * 40 + b",s1\n"
    name = reference.removeprefix("me/maps/") if reference.count("/") > 1 else "map.csv"
    kaggle.datasets["me/maps"] = {name: zip_file("map.csv", content) if packed else content, "README.md": b"notes"}
    (tmp_path / "map.csv").write_bytes(content)
    given = tmp_path / "map.csv" if reference == "FILE" else reference
    code, shown, said = call("fetch", "--out", small.root, "--slides", given)
    assert (code, shown) == (0, f"{small.root}\n"), said
    assert "5 slides of 20 patches; 1 other id ignored" in said
    assert small.slides.read_text().startswith("id,wsi\n")
    code, shown, said = call("folds", "--data", small.root, "--out", tmp_path / "f.csv", "--k", 2)
    assert code == 0 and f"using the slide map {small.slides}" in said and "slides" in shown and "0.996" not in said
    before = small.slides.read_bytes()
    assert call("fetch", "--out", small.root, "--slides", given)[0] == 0 and small.slides.read_bytes() == before
    first, second, rest = content.split(b"\n", 2)
    (tmp_path / "other.csv").write_bytes(b"\n".join([first, second.split(b",")[0] + b",another", rest]))
    code, _, said = call("fetch", "--out", small.root, "--slides", tmp_path / "other.csv")
    assert code == 2 and "it is never replaced" in said and small.slides.read_bytes() == before


def zip_file(name: str, content: bytes) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr(name, content)
    return stream.getvalue()


@pytest.mark.usefixtures("quick")
def test_a_slide_map_that_cannot_be_fetched_says_why(
    kaggle: FakeKaggle, small: DataDir, call: Call, tmp_path: Path
) -> None:
    kaggle.datasets["me/two"] = {"a.csv": b"id,wsi\n", "b.csv": b"id,wsi\n"}
    kaggle.datasets["me/other"] = {"slides.csv": b"id,wsi\n" + b"f" * 40 + b",s1\n"}
    faults = {
        "me/missing": (1, "Permission 'datasets.get' was denied"),
        "me/two": (1, "the dataset me/two has a.csv, b.csv; expected one table. Name the file: --slides me/two/FILE"),
        "me/two/c.csv": (1, "404"),
        "me/other": (1, "no training id with a slide"),
        "nothing.csv": (2, "--slides nothing.csv: no such file, and not the name of a dataset"),
        "maps/slides.csv": (2, "--slides maps/slides.csv: no such file, and not the name of a dataset"),
        "/maps/slides/map.csv": (2, "--slides /maps/slides/map.csv: no such file, and not the name of a dataset"),
        "../../etc": (2, "no such file, and not the name of a dataset"),
    }
    for reference, (expected, words) in faults.items():
        code, _, said = call("fetch", "--out", small.root, "--slides", reference)
        assert code == expected and words in said and said.rstrip().count("\n") <= 2, said
    seen = len(kaggle.seen)
    code, _, said = call("fetch", "--out", tmp_path / "new", "--slides", "nothing.csv")
    assert code == 2 and "no such file" in said and len(kaggle.seen) == seen and not (tmp_path / "new").exists()
    assert not small.slides.exists()
    code, _, said = call("folds", "--data", small.root, "--out", tmp_path / "f.csv", "--k", 2)
    assert code == 0 and said.splitlines()[0].startswith("folds by patch put patches of one slide in training")
    assert said.count("0.996") == 1


def test_a_long_fetch_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from claris_kaggle.core import console
    from claris_kaggle.kaggle.download import _show_download_size

    monkeypatch.setattr(console, "_LOG_INTERVAL", 0.0)
    monkeypatch.setattr(console, "_AGE_SHARE", 0.0)
    with _show_download_size(tmp_path, interval=0.01):
        (tmp_path / "archive.zip.kaggle-partial").write_bytes(bytes(30_000_000))
        deadline = time.monotonic() + 20
        while "0.03 GB downloaded" not in (said := capsys.readouterr().err):
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
    assert "MB/s" in said


@pytest.mark.usefixtures("quick")
def test_a_failed_fetch_gives_the_reason_and_leaves_no_data(
    kaggle: FakeKaggle, archive: bytes, call: Call, tmp_path: Path
) -> None:
    rules = b'{"code": 403, "message": "You must accept this competition\'s rules"}'
    kaggle.faults["DownloadDataFiles"] = [Fault(status=403, body=rules)]
    code, _, said = call("fetch", "--out", tmp_path / "data")
    assert code == 1 and "accept this competition's rules" in said and "/rules" in said
    for content in (archive[: len(archive) // 2], b"<html>busy</html>"):
        kaggle.data["histopathologic-cancer-detection.zip"] = content
        code, _, said = call("fetch", "--out", tmp_path / "data")
        assert code == 1 and "not a complete archive" in said
    evil = BytesIO()
    with zipfile.ZipFile(evil, "w") as target:
        target.writestr("../../evil", "x")
    kaggle.data["histopathologic-cancer-detection.zip"] = evil.getvalue()
    code, _, said = call("fetch", "--out", tmp_path / "data")
    assert code == 1 and "expected names inside the folder" in said
    assert not (tmp_path / "data").exists()


def test_each_push_has_its_own_identifier() -> None:
    assert len({new_push_token("x") for _ in range(1000)}) == 1000
