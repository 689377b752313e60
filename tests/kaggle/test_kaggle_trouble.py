"""Test failures of Kaggle, the network and sessions: each is recognised, and no work is lost."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from claris_kaggle.core.errors import ClarisError, DiskError, KaggleError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.ensembling.ledger import read_ledger
from claris_kaggle.kaggle import api as kaggle_api
from claris_kaggle.kaggle import client_process, download, kernel_output, kernel_push, launch, preflight, submit
from claris_kaggle.kaggle import launch_state as plans
from claris_kaggle.kaggle.launch_state import Plan
from tests.conftest import ROOT, contents, environment, make_archive, run_files
from tests.support.kaggle_double import MANIFEST, PASSING, FakeKaggle, Fault, Version, log_of, with_manifest
from tests.support.kaggle_double.faults import flat_error

Call = Callable[..., tuple[int, str, str]]
FULL = b'{"error": "Maximum batch GPU session count of 2 reached."}'


def make_plan(*parts: tuple[int, ...], datasets: tuple[str, ...] = ()) -> Plan:
    return Plan(name="first", parts=parts or ((),), flags=("--epochs", "2"), datasets=datasets)


def run_launch(plan: Plan, tmp_path: Path, poll: float = 0.0) -> dict[str, object]:
    return launch.run_launch(plan, tmp_path / "first", tmp_path / "ledger.csv", poll=poll)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kernel_that_lacks_an_input_is_not_adopted_and_the_flag_may_be_corrected(
    trained: FakeKaggle, tmp_path: Path, lost: bool
) -> None:
    trained.unknown = {"me/slidez"}
    trained.faults["SaveKernel"] = [Fault(cut=True, acted=True)] if lost else []
    for number in (1, 2):
        with pytest.raises(KaggleError, match=r"without some of its inputs .*me/slidez.*; it runs without them"):
            run_launch(make_plan(datasets=("me/slidez",)), tmp_path)
        assert len(trained.kernels["me/claris-first-all"]) == number
        trained.kernels["me/claris-first-all"][-1].statuses = ["CANCEL_ACKNOWLEDGED"]
    assert run_launch(make_plan(datasets=("me/slides",)), tmp_path)["status"] == "COMPLETE"
    assert trained.kernels["me/claris-first-all"][-1].request["datasetDataSources"] == ["me/slides"]
    assert len(trained.kernels["me/claris-first-all"]) == 3
    with pytest.raises(ClarisError, match=r"another plan \(datasets\)"):
        run_launch(make_plan(datasets=("me/others",)), tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_a_version_saved_without_a_session_is_not_waited_for(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.faults["SaveKernel"] = [Fault(status=200, body=FULL, acted=True)]
    run_launch(make_plan(), tmp_path)
    state = json.loads((tmp_path / "first" / "launch.json").read_text())
    (one,) = state["sessions"][0]
    assert one["version"] == 1 and one["ref"].startswith("me/claris-first-all-")
    assert {ref: len(versions) for ref, versions in trained.kernels.items()} == {
        "me/claris-first-all": 1,
        one["ref"]: 1,
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_what_a_failed_session_had_finished_is_kept_and_gone_on_with(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir
) -> None:
    outcomes = iter([(run_files(finished, (0,)), "failed"), (run_files(finished), "complete")])
    trained.produce = lambda settings: next(outcomes)
    with pytest.raises(KaggleError, match="version 1 failed: the loss is no number"):
        run_launch(make_plan(), tmp_path)
    assert (tmp_path / "first/parts/all/run/fold0/oof.csv").read_bytes() == finished.fold(0).oof.read_bytes()
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    assert trained.kernels["me/claris-first-all-r2"][0].request["kernelDataSources"] == ["me/claris-first-all"]


@pytest.mark.usefixtures("quick")
def test_a_failed_session_is_pulled_and_said_to_have_failed(
    trained: FakeKaggle, call: Call, tmp_path: Path, finished: RunDir
) -> None:
    trained.statuses = ["COMPLETE"]
    trained.produce = lambda settings: (run_files(finished, (0,)), "failed")
    record = ["--record", tmp_path / "kernels.json"]
    assert call("push", "train", *record)[0] == 0
    code, shown, said = call("pull", *record, "--out", tmp_path / "out")
    assert code == 1 and "failed" in shown and "the loss is no number" in said
    assert (tmp_path / "out/run/fold0/model.safetensors").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_the_other_parts_go_on_when_one_session_fails(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_DEFAULT_FOLDS", 3)  # the finished run has three

    def produce(settings: dict[str, object]) -> tuple[dict[str, bytes], str]:
        folds = tuple(settings["folds"])  # type: ignore[arg-type]
        return (run_files(finished, folds), "failed" if folds == (0,) else "complete")

    trained.produce = produce
    plan = make_plan((0,), (1,), (2,))
    with pytest.raises(KaggleError, match="claris-first-fold0 version 1 failed"):
        run_launch(plan, tmp_path)
    state = json.loads((tmp_path / "first" / "launch.json").read_text())
    assert [part[-1]["outcome"] for part in state["sessions"]] == ["failed", "complete", "complete"]


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_an_outage_is_waited_through(trained: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaggle_api, "_CALL_PAUSES", ())
    trained.faults["GetKernelSessionStatus"] = [Fault(status=503), Fault(cut=True), Fault(status=502)]
    trained.faults["ListKernelSessionOutput"] = [Fault(status=503)]
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    assert trained.count("SaveKernel") == 1
    monkeypatch.setattr(launch, "_MAX_SESSION_WAIT", -1.0)
    trained.faults["SaveKernel"] = [Fault(status=503)]
    with pytest.raises(KaggleError, match="answered 503"):
        launch.run_launch(make_plan(), tmp_path / "second", tmp_path / "ledger.csv", poll=0)


TOKEN = {
    "503": (Fault(status=503), "me"),
    "429": (Fault(status=429), "me"),
    "cut": (Fault(cut=True), "me"),
    "401": (Fault(status=401), "refused the token"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", TOKEN)
def test_a_token_that_could_not_be_asked_about_is_not_said_to_be_missing(
    kaggle: FakeKaggle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, words = TOKEN[name]
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-token")
    kaggle.faults["IntrospectToken"] = [fault, fault]
    try:
        assert kaggle_api.find_user() == words
    except KaggleError as error:
        assert words in str(error)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "another")
    kaggle.faults.clear()
    with pytest.raises(KaggleError, match="no Kaggle token was found, or it was not accepted"):
        kaggle_api.find_user()


def test_an_act_is_looked_for_after_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def attempt() -> dict[str, object]:
        events.append("attempt")
        raise KaggleError("Kaggle answered 504", retryable=True)

    def look() -> dict[str, object] | None:
        events.append("look")
        return {"version": 1} if events.count("look") == 6 else None

    monkeypatch.setattr(kaggle_api, "_CALL_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(kaggle_api, "time", SimpleNamespace(sleep=lambda seconds: events.append("sleep")))
    assert kaggle_api._retry_attempt(attempt, look) == {"version": 1}
    assert events == ["attempt", "sleep", *["sleep", "look"] * 4, "attempt", "sleep", *["sleep", "look"] * 2]


@pytest.mark.usefixtures("quick")
def test_an_unfinished_push_is_found_by_the_same_command_and_repeated_by_the_next(
    trained: FakeKaggle, call: Call, tmp_path: Path
) -> None:
    push = ["push", "train", "--time-limit", "11h59m", "--record", tmp_path / "kernels.json"]
    status = ["status", "--record", tmp_path / "kernels.json"]
    trained.faults["SaveKernel"] = [Fault(status=503) for _ in range(4)]
    assert call(*push)[0] == 1
    code, _, said = call(*status)
    assert code == 2 and "did not reach Kaggle. Run the same claris push again" in said
    trained.faults["SaveKernel"] = [Fault(cut=True, acted=True)]
    trained.faults["GetKernel"] = [*(Fault() for _ in range(4)), *(Fault(status=503) for _ in range(4))]
    assert call(*push)[0] == 1 and len(trained.kernels["me/claris-train"]) == 1
    trained.faults.clear()
    assert call(*status)[0] == 0
    assert call(*push)[1] == "me/claris-train version 2\n"
    assert trained.kernels["me/claris-train"][0].request["sessionTimeoutSeconds"] == 12 * 3600 - 60


@pytest.mark.usefixtures("quick")
def test_a_push_whose_answer_got_lost_is_adopted_by_the_same_command(
    trained: FakeKaggle, call: Call, tmp_path: Path
) -> None:
    push = ["push", "train", "--record", tmp_path / "kernels.json"]
    trained.faults["SaveKernel"] = [Fault(cut=True, acted=True)]
    trained.faults["GetKernel"] = [Fault(status=503) for _ in range(4)]
    assert call(*push)[0] == 1
    trained.faults.clear()
    assert call(*push)[1] == "me/claris-train version 1\n" and len(trained.kernels["me/claris-train"]) == 1
    assert call(*push, "--fold", "0")[1] == "me/claris-train version 2\n"


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_kernels_of_a_launch_and_those_pushed_by_hand_are_known(
    trained: FakeKaggle, call: Call, tmp_path: Path
) -> None:
    record = ["--record", tmp_path / "kernels.json"]
    run_launch(make_plan(), tmp_path)
    assert call("status", *record)[1] == "me/claris-first-all version 1: complete\n"
    built = tmp_path / "built"
    assert call("push", "train", "--build-only", built, "--user", "me", *record)[0] == 0
    assert call("status", *record)[1] == "me/claris-first-all version 1: complete\n"
    code, _, said = call("status", "claris-train", *record)
    assert code == 2 and f"Push it: kaggle kernels push -p {built}" in said
    kaggle_api._call_once(kaggle_api._PUSH, folder=str(built), timeout=0)
    assert call("status", *record)[1] == "me/claris-train version 1: queued\n"


def test_folds_and_flags_of_training_are_refused_for_other_kernels(kaggle: FakeKaggle, call: Call) -> None:
    for words in (["predict", "--fold", "1"], ["ensemble", "--", "--epochs", "3"]):
        code, _, said = call("push", *words)
        assert code == 2 and "they are for train only" in said and kaggle.seen == []


@pytest.mark.usefixtures("quick")
def test_an_upload_that_fails_is_tried_again(trained: FakeKaggle, call: Call, submission: list[object]) -> None:
    trained.faults["PUT"] = [Fault(status=503), Fault(status=500)]
    code, _, said = call(*submission)
    assert code == 0 and "could not be uploaded" in said, said
    assert len(trained.submissions) == len(trained.uploads) == 1


@pytest.mark.usefixtures("quick")
def test_a_submission_that_could_not_be_scored_is_sent_again_and_limits_may_be_unknown(
    trained: FakeKaggle, call: Call, submission: list[object], tmp_path: Path
) -> None:
    trained.limits = {}
    trained.faults["ListSubmissions"] = [Fault(), Fault(do=lambda: trained.submissions[0].update(status="ERROR"))]
    assert call(*submission)[0] == 1
    trained.faults["ListSubmissions"] = [Fault(), *(Fault(status=503) for _ in range(4))]
    code, shown, said = call(*submission)
    assert code == 0 and "submission 1001: complete" in shown, said
    assert "submitted before, as 1000, and not scored; sending it again" in said
    assert [line.status for line in read_ledger(tmp_path / "l.csv")] == ["ERROR", "COMPLETE"]


@pytest.mark.usefixtures("quick")
def test_another_version_pulled_into_a_folder_leaves_nothing_of_the_one_before(
    trained: FakeKaggle, call: Call, tmp_path: Path, finished: RunDir
) -> None:
    trained.statuses = ["COMPLETE"]
    outcomes = iter([(run_files(finished, folds), "complete") for folds in ((0, 1), (2,), (0,))])
    trained.produce = lambda settings: next(outcomes)
    record, out = ["--record", tmp_path / "kernels.json"], tmp_path / "out"
    for number in range(2):
        assert call("push", "train", *record)[0] == call("pull", *record, "--out", out)[0] == 0
        if number == 0:
            (out / "run" / "fold0" / "mine.txt").write_text("mine")
    assert set(contents(out)) == {*run_files(finished, (2,)), "claris-session.json", "run/fold0/mine.txt"}
    (out / "run" / "fold2" / "oof.csv").write_text("changed")
    before = contents(out)
    assert call("push", "train", *record)[0] == 0
    code, _, said = call("pull", *record, "--out", out)
    assert code == 2 and "have changed (run/fold2/oof.csv)" in said and contents(out) == before


@pytest.mark.usefixtures("quick")
def test_a_failed_session_is_said_once(trained: FakeKaggle, call: Call, tmp_path: Path) -> None:
    trained.produce = lambda settings: ({}, "complete")
    trained.statuses = ["ERROR"]
    record = ["--record", tmp_path / "kernels.json"]
    assert call("push", "train", *record)[0] == 0
    code, shown, said = call("status", *record)
    assert (code, shown, said.count("failed")) == (1, "", 1)
    code, shown, said = call("status", *record, "--json")
    assert code == 1 and "failed" in json.loads(shown)["message"] and said == ""
    assert trained.count("ListKernelSessionOutput") == 2


@pytest.mark.usefixtures("quick")
def test_a_refusal_for_the_weeks_quota_says_when_to_go_on(kaggle: FakeKaggle, call: Call, tmp_path: Path) -> None:
    reason = "Maximum weekly GPU quota of 30.00 hours reached."
    kaggle.answers["kernels.KernelsApiService/SaveKernel"] = {"error": reason}
    code, _, said = call("push", "train", "--record", tmp_path / "kernels.json")
    assert code == 1 and "quota resets" in said and kernel_push._read_pushes(tmp_path / "kernels.json") == []


@pytest.mark.usefixtures("quick")
def test_an_address_that_has_expired_is_asked_for_anew(
    kaggle: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.data["sample_submission.csv"] = b"id,label\n"
    kaggle.faults["GET"] = [Fault(status=403)]
    assert download.fetch_file("sample_submission.csv", tmp_path).read_bytes() == b"id,label\n"
    assert kaggle.count("DownloadDataFile") == 2 and "rules" not in capsys.readouterr().err


def test_a_full_disk_is_said_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(api: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(client_process._CLIENT_METHODS, "whoami", full)
    monkeypatch.setattr(client_process, "_log_in", lambda: object())
    reply = subprocess.CompletedProcess([], 0, stdout=client_process._run_method("whoami", "{}"), stderr="")
    monkeypatch.setattr(kaggle_api, "subprocess", SimpleNamespace(run=lambda *args, **named: reply, TimeoutExpired=()))
    with pytest.raises(DiskError, match="no space left on the disk"):
        kaggle_api._call_once(kaggle_api._DOWNLOAD_ALL, folder=str(tmp_path))


def test_what_the_client_said_is_shown_with_debug(
    kaggle: FakeKaggle, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    reply = subprocess.CompletedProcess([], 1, stdout="", stderr="first words\nlast words\n")
    monkeypatch.setattr(kaggle_api, "subprocess", SimpleNamespace(run=lambda *args, **named: reply, TimeoutExpired=()))
    code, _, said = call("push", "train")
    assert code == 1 and "Kaggle's client failed (last words)" in said and "first words" not in said
    assert "first words" in call("push", "train", "--debug")[2]


def test_a_file_of_the_users_own_is_not_the_client(
    kaggle: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kaggle.py").write_text("raise SystemExit('not this')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAGGLE_TOKEN", "of something else")
    assert kaggle_api.find_user() == "me"


def test_the_client_ends_with_the_process_that_started_it(kaggle: FakeKaggle) -> None:
    kaggle.faults["GetKernelSessionStatus"] = [Fault(pause=20.0)]
    ask = "api._call_once(api._STATUS, ref='me/claris-train', version=1)"
    code = f"from claris_kaggle.kaggle import api; {ask}"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**environment(), "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not kaggle.seen and time.monotonic() < deadline:
        time.sleep(0.1)
    child = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0])
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 15
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)


def is_running(process: int) -> bool:
    """Return True if the process runs. An ended process that was not waited for does not count."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


class Clock:
    """A clock that only `sleep` advances."""

    def __init__(self) -> None:
        self.start = self.now = time.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the launch, so that hours of waiting take no time."""
    made = Clock()
    for module in (launch, kernel_output, plans, kernel_push, submit):
        monkeypatch.setattr(module, "time", made)
    return made


def read_sessions(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the recorded sessions of the first part of the launch."""
    return list(json.loads((tmp_path / "first" / "launch.json").read_text())["sessions"][0])


@pytest.mark.usefixtures("quick")
def test_looks_that_come_too_early_are_repeated(trained: FakeKaggle, tmp_path: Path, clock: Clock) -> None:
    trained.unlisted, trained.lag = 4, [0, 5]
    assert run_launch(make_plan(), tmp_path, poll=60)["status"] == "COMPLETE"
    assert trained.count("SaveKernel") == trained.count("CreateSubmission") == 1
    trained.unlisted = 100
    with pytest.raises(
        KaggleError, match=r"did not find it .*Check the name at https://www.kaggle.com/code/me/claris-"
    ):
        run_launch(make_plan(), tmp_path / "late", poll=150)
    assert 600 <= clock.now - read_sessions(tmp_path / "late")[0]["started"] <= 750


@pytest.mark.usefixtures("quick")
def test_an_output_that_is_never_listed_is_given_up_after_ten_minutes(
    trained: FakeKaggle, tmp_path: Path, clock: Clock
) -> None:
    trained.lag = [0] * 100
    with pytest.raises(KaggleError, match=r"wrote no claris-session.json.*run the same command again"):
        run_launch(make_plan(), tmp_path, poll=200)
    trained.kernels["me/claris-first-all"][0].lag = []
    assert run_launch(make_plan(), tmp_path, poll=200)["status"] == "COMPLETE" and trained.count("SaveKernel") == 1


def add_other_session(kaggle: FakeKaggle) -> Version:
    """Add a running GPU session of the account that belongs to no launch."""
    one = Version("1", {"enableGpu": True}, ["RUNNING"], {})
    kaggle.kernels["me/other"].append(one)
    return one


@pytest.mark.usefixtures("quick")
def test_a_projected_quota_is_waited_for_with_growing_pauses_and_another_name_each_time(
    trained: FakeKaggle, tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.hours_used, one = 19.0, add_other_session(trained)
    ends = [Fault() for _ in range(4)] + [Fault(do=lambda: setattr(one, "statuses", ["COMPLETE"]))]
    trained.faults["SaveKernel"] = ends
    assert run_launch(make_plan(), tmp_path, poll=60)["status"] == "COMPLETE"
    said = capsys.readouterr().err
    assert said.count("projected to exceed") == 4 and "pushing again in 8 min" in said, said
    assert len(trained.empty) == 4 and trained.count("SaveKernel") == 5 and len(trained.submissions) == 1
    assert read_sessions(tmp_path)[0]["ref"] not in trained.empty


@pytest.mark.usefixtures("quick")
def test_a_refusal_that_passes_is_not_waited_for_longer_than_a_day(
    trained: FakeKaggle, tmp_path: Path, clock: Clock
) -> None:
    trained.session_limit = 0
    with pytest.raises(KaggleError, match="session count of 0 reached"):
        run_launch(make_plan(), tmp_path, poll=3 * 3600)
    assert 24 <= (clock.now - clock.start) / 3600 <= 28
    trained.session_limit = 2
    assert run_launch(make_plan(), tmp_path, poll=60)["status"] == "COMPLETE"


@pytest.mark.usefixtures("quick")
def test_an_empty_kernel_and_a_name_in_conflict_are_left_for_another_name(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.empty.add("me/claris-first-all")
    trained.faults["SaveKernel"] = [Fault(), Fault(status=409, body=flat_error(409, "exists"))]
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    (one,) = read_sessions(tmp_path)
    assert one["ref"].startswith("me/claris-first-all-") and trained.count("SaveKernel") == 3
    assert trained.kernels[one["ref"]][0].request["newTitle"] == one["ref"].split("/")[1].replace("-", " ")


@pytest.mark.usefixtures("quick")
def test_a_push_that_an_earlier_version_may_have_made_is_looked_for(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.faults["SaveKernel"] = [Fault(cut=True, acted=True)]
    trained.faults["GetKernel"] = [Fault(status=401)]
    with pytest.raises(KaggleError, match="401"):
        run_launch(make_plan(), tmp_path)
    path = tmp_path / "first" / "launch.json"
    state = json.loads(path.read_text())
    (session,) = state.pop("sessions")[0]
    former = {"push_token": "mark", "started": "began"}
    newer = ("push_attempted", "limit", "fetch_attempts", "pulled_output", "left_empty_kernel")
    state["rounds"] = [[{former.get(key, key): value for key, value in session.items() if key not in newer}]]
    path.write_text(json.dumps(state))
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE" and trained.count("SaveKernel") == 1


ANSWERS = {
    "an address without the ref": {"ref": ""},
    "another form of address": {"ref": "", "url": "https://www.kaggle.com/me/claris-first-all?scriptVersionId=7"},
    "no version number": {"versionNumber": None},
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ANSWERS)
def test_a_push_is_known_from_what_its_answer_tells(trained: FakeKaggle, tmp_path: Path, name: str) -> None:
    push = trained.do_SaveKernel

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in (push(body) | ANSWERS[name]).items() if value}

    trained.do_SaveKernel = answer  # type: ignore[method-assign]
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE" and trained.count("SaveKernel") == 1


@pytest.mark.usefixtures("quick")
def test_a_conflict_after_a_lost_answer_is_looked_up_first(trained: FakeKaggle, tmp_path: Path) -> None:
    lost = Fault(cut=True, acted=True)
    trained.faults["SaveKernel"] = [lost, Fault(status=409, body=flat_error(409, "exists"))]
    trained.faults["GetKernel"] = [Fault(status=403, body=flat_error(403, "not yet"))] * 4
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    assert [len(versions) for versions in trained.kernels.values()] == [1] and trained.count("SaveKernel") == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("nested", [False, True])
def test_rules_that_were_not_accepted_are_said_with_their_page(
    trained: FakeKaggle, call: Call, tmp_path: Path, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained.rules_accepted, trained.nested = False, nested
    code, _, said = call("launch", "first", "--poll", 0)
    rules = "https://www.kaggle.com/c/histopathologic-cancer-detection/rules"
    assert code == 1 and f"The rules were probably not accepted: accept them at {rules}, cancel the kernel at" in said
    trained.kernels["me/claris-first-all"][0].statuses = ["ERROR"]
    code, _, said = call("fetch", "--out", tmp_path / "data")
    assert code == 1 and f"Accept the rules at {rules}" in said and not (tmp_path / "data").exists()
    trained.rules_accepted = True
    assert call("launch", "first", "--poll", 0)[0] == 0
    assert trained.count("SaveKernel") == 2 and len(trained.submissions) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("nested", [False, True])
def test_a_token_that_expired_is_said_with_what_makes_a_new_one(
    kaggle: FakeKaggle, call: Call, tmp_path: Path, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kaggle.token_expired, kaggle.nested = True, nested
    with monkeypatch.context() as other:
        other.setenv("KAGGLE_KEY", "not-a-key")
        code, _, said = call("launch", "first", "--poll", 0)
    assert code == 1 and said.count("\n") == 1 and "the key is not a Kaggle key" in said, said
    code, _, said = call("launch", "first", "--poll", 0)
    assert code == 1 and said.count("\n") == 1, said
    for words in ("expired", "kaggle auth login", "KAGGLE_API_TOKEN", "kaggle.json", "https://www.kaggle.com/settings"):
        assert words in said


@pytest.mark.usefixtures("quick")
def test_a_kernel_that_is_not_there_is_said_with_its_page(kaggle: FakeKaggle, call: Call, tmp_path: Path) -> None:
    record = tmp_path / "kernels.json"
    kernel_push.record_push(record, kernel_output.Kernel(ref="me/claris-trane", version=1, push_token="m"))
    for command in (["status"], ["pull", "--out", tmp_path / "out"]):
        code, shown, said = call(*command, "--record", record)
        assert (code, shown) == (1, "") and "Check the name at https://www.kaggle.com/code/me/claris-trane" in said
        assert "private" in said and "scope" in said and not (tmp_path / "out").exists()


ENDS = {
    "timed out": ("CANCEL_ACKNOWLEDGED", 11.8 * 3600, "timed out after 11 h 48 min"),
    "cancelled": ("CANCEL_ACKNOWLEDGED", 3600.0, "was cancelled after 60 min"),
    "failed": ("ERROR", 3600.0, "failed"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ENDS)
def test_what_a_session_had_finished_that_ended_badly_is_gone_on_with(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, seconds, words = ENDS[name]
    outcomes = iter([(run_files(finished, (0, 1)), "running"), (run_files(finished), "complete")])
    trained.produce, trained.statuses = lambda settings: next(outcomes), ["RUNNING", status]

    def spoil(route: str, number: int) -> None:
        if route.endswith("SaveKernel"):
            one = trained.kernels["me/claris-first-all"][0]
            one.log, trained.statuses = log_of("fold 2", seconds=seconds), ["COMPLETE"]
            one.files["run/fold1/oof.csv"] = b"cut"  # the session was writing there

    trained.on_request = spoil
    if name == "timed out":
        assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
        said = capsys.readouterr().err
        assert words in said and "resuming with its finished folds (fold0)" in said
    else:
        with pytest.raises(KaggleError) as caught:
            run_launch(make_plan(), tmp_path)
        assert words in str(caught.value) and "finished folds are in" in str(caught.value)
        assert "(fold0)" in str(caught.value)
        kept = {file for file in run_files(finished, (0,))}
        assert set(contents(tmp_path / "first/parts/all")) == {*kept, "claris-session.json"}
        assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    second = trained.kernels["me/claris-first-all-r2"]
    assert [one.request["kernelDataSources"] for one in second] == [["me/claris-first-all/1"]]
    assert len(trained.submissions) == 1


@pytest.mark.usefixtures("quick")
def test_a_manifest_that_is_not_the_last_one_is_looked_for_again(
    trained: FakeKaggle, tmp_path: Path, clock: Clock, finished: RunDir
) -> None:
    trained.produce, trained.statuses = lambda settings: (run_files(finished), "running"), ["COMPLETE"]
    last: dict[str, bytes] = {}

    def spoil(route: str, number: int) -> None:
        if route.endswith("SaveKernel"):
            one = trained.kernels["me/claris-first-all"][0]
            files = {name: content for name, content in one.files.items() if name != MANIFEST}
            last.update(with_manifest(files, one.settings))
        if route.endswith("GetKernelSessionStatus") and trained.count("GetKernelSessionStatus") == 3:
            trained.kernels["me/claris-first-all"][0].files = last

    trained.on_request = spoil
    assert run_launch(make_plan(), tmp_path, poll=60)["status"] == "COMPLETE"
    assert trained.count("GetKernelSessionStatus") == 3 and trained.count("SaveKernel") == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ENDS)
def test_pull_fetches_what_a_session_had_finished_that_ended_badly(
    trained: FakeKaggle, call: Call, tmp_path: Path, finished: RunDir, name: str
) -> None:
    status, seconds, words = ENDS[name]
    trained.produce, trained.statuses = lambda settings: (run_files(finished, (0,)), "running"), [status]
    record = ["--record", tmp_path / "kernels.json"]
    assert call("push", "train", *record)[0] == 0
    trained.kernels["me/claris-train"][0].log = log_of("fold 1", seconds=seconds)
    code, _, said = call("pull", *record, "--out", tmp_path / "out")
    assert code == 1 and words in said and f"finished folds are in {tmp_path / 'out'} (fold0)" in said
    assert set(contents(tmp_path / "out")) == {*run_files(finished, (0,)), "claris-session.json"}


@pytest.mark.usefixtures("quick")
def test_a_push_whose_name_was_left_empty_takes_another(kaggle: FakeKaggle, call: Call, tmp_path: Path) -> None:
    push = ["push", "train", "--record", tmp_path / "kernels.json"]
    kaggle.session_limit = 0
    code, _, said = call(*push)
    assert code == 1 and "when another session has ended" in said
    kaggle.session_limit = 2
    code, shown, said = call(*push)
    assert code == 0 and "may have left an empty kernel" in said and shown.startswith("me/claris-train-"), said
    assert call(*push)[1] == shown.replace("version 1", "version 2")
    assert "me/claris-train" not in kaggle.kernels and kaggle.count("SaveKernel") == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
@pytest.mark.parametrize("command", ["push", "status", "pull", "submit", "fetch", "launch"])
def test_every_command_survives_every_fault_that_passes_at_every_call(
    trained: FakeKaggle,
    call: Call,
    tmp_path: Path,
    command: str,
    finished: RunDir,
    generated: DataDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kaggle_api, "_CALL_PAUSES", (0.0,) * 20)  # one fetch meets the faults of two methods
    trained.statuses = ["COMPLETE"]
    trained.data["histopathologic-cancer-detection.zip"] = make_archive(generated)
    assert call("push", "train")[0] == 0
    assert call("ensemble", finished.root, "--data", generated.root, "--out", "s.csv")[0] == 0
    words = {
        "push": ["push", "train", "--fold", 0],
        "status": ["status"],
        "pull": ["pull", "--out", "out"],
        "submit": ["submit", "s.csv", "--poll", 0],
        "fetch": ["fetch", "--out", "data"],
        "launch": ["launch", "first", "--poll", 0],
    }[command]
    methods = {route.split("/")[-1] for route, _ in trained.seen} | {
        "SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput", "GET", "ListSubmissions",
        "GetSubmissionLimits", "StartSubmissionUpload", "CreateSubmission", "DownloadDataFile", "DownloadDataFiles",
    }  # fmt: skip
    passing = [fault for fault in PASSING.values() if not fault.acted]
    for method in methods:
        trained.faults[method] = list(passing)
    code, _, said = call(*words)
    survived = {method: len(passing) - len(trained.faults[method]) for method in methods}
    print(f"faults injected and survived by claris {command}: {sum(survived.values())}, {survived}")
    assert code == 0 and sum(survived.values()) >= len(passing), said
    trained.faults.clear()
    assert len(trained.submissions) == (command in ("submit", "launch"))
    assert len(read_ledger(Path("submissions/ledger.csv"))) == len(trained.submissions)
    assert trained.count("CreateSubmission") >= len(trained.submissions)
