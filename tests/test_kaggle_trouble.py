"""When Kaggle, the network or a session lets one down: nothing is taken for what it is not, and nothing is lost."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from claris_kaggle import fetch, kaggle_api, kaggle_client, launch, pushes
from claris_kaggle.errors import ClarisError, DiskError, KaggleError
from claris_kaggle.ledger import read_ledger
from claris_kaggle.paths import DataDir, RunDir
from claris_kaggle.plan import Plan
from tests.conftest import ROOT, contents, environment, run_files
from tests.kaggle_double import FakeKaggle, Fault

Call = Callable[..., tuple[int, str, str]]
FULL = b'{"error": "Maximum batch GPU session count of 2 reached."}'


def plan_of(*parts: tuple[int, ...], datasets: tuple[str, ...] = ()) -> Plan:
    return Plan(name="first", parts=parts or ((),), flags=("--epochs", "2"), datasets=datasets)


def run_launch(plan: Plan, tmp_path: Path) -> dict[str, object]:
    return launch.run_launch(plan, tmp_path / "first", tmp_path / "ledger.csv", poll=0)


@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kernel_that_lacks_an_input_is_not_adopted_and_the_flag_may_be_corrected(
    trained: FakeKaggle, tmp_path: Path, lost: bool
) -> None:
    trained.unknown = {"me/slidez"}
    trained.faults["SaveKernel"] = [Fault(cut=True, acted=True)] if lost else []
    for number in (1, 2):
        with pytest.raises(KaggleError, match=r"without some of its inputs .*me/slidez.*; it runs without them"):
            run_launch(plan_of(datasets=("me/slidez",)), tmp_path)
        assert len(trained.kernels["me/claris-first-all"]) == number
        trained.kernels["me/claris-first-all"][-1].statuses = ["CANCEL_ACKNOWLEDGED"]
    assert run_launch(plan_of(datasets=("me/slides",)), tmp_path)["status"] == "COMPLETE"
    assert trained.kernels["me/claris-first-all"][-1].request["datasetDataSources"] == ["me/slides"]
    assert len(trained.kernels["me/claris-first-all"]) == 3
    with pytest.raises(ClarisError, match=r"another plan \(datasets\)"):
        run_launch(plan_of(datasets=("me/others",)), tmp_path)


@pytest.mark.slow
def test_a_version_saved_without_a_session_is_not_waited_for(trained: FakeKaggle, tmp_path: Path) -> None:
    trained.faults["SaveKernel"] = [Fault(status=200, body=FULL, acted=True)]
    run_launch(plan_of(), tmp_path)
    assert len(trained.kernels["me/claris-first-all"]) == 2
    state = json.loads((tmp_path / "first" / "launch.json").read_text())
    assert [one["version"] for one in state["rounds"][0]] == [2]


@pytest.mark.slow
def test_what_a_failed_session_had_finished_is_kept_and_gone_on_with(
    trained: FakeKaggle, tmp_path: Path, finished: RunDir
) -> None:
    outcomes = iter([(run_files(finished, (0,)), "failed"), (run_files(finished), "complete")])
    trained.produce = lambda settings: next(outcomes)
    with pytest.raises(KaggleError, match="version 1 failed: the loss is no number"):
        run_launch(plan_of(), tmp_path)
    assert (tmp_path / "first/parts/all/run/fold0/oof.csv").read_bytes() == finished.fold(0).oof.read_bytes()
    assert run_launch(plan_of(), tmp_path)["status"] == "COMPLETE"
    assert trained.kernels["me/claris-first-all-r2"][0].request["kernelDataSources"] == ["me/claris-first-all"]


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


@pytest.mark.slow
def test_the_other_parts_go_on_when_one_session_fails(trained: FakeKaggle, tmp_path: Path, finished: RunDir) -> None:
    def produce(settings: dict[str, object]) -> tuple[dict[str, bytes], str]:
        folds = tuple(settings["folds"])  # type: ignore[arg-type]
        return (run_files(finished, folds), "failed" if folds == (0,) else "complete")

    trained.produce = produce
    plan = plan_of((0,), (1,), (2,))
    with pytest.raises(KaggleError, match="claris-first-fold0 version 1 failed"):
        run_launch(plan, tmp_path)
    state = json.loads((tmp_path / "first" / "launch.json").read_text())
    assert [part[-1]["outcome"] for part in state["rounds"]] == ["failed", "complete", "complete"]


@pytest.mark.slow
def test_an_outage_is_waited_through(trained: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaggle_api, "PAUSES", ())
    trained.faults["GetKernelSessionStatus"] = [Fault(status=503), Fault(cut=True), Fault(status=502)]
    trained.faults["ListKernelSessionOutput"] = [Fault(status=503)]
    assert run_launch(plan_of(), tmp_path)["status"] == "COMPLETE"
    assert trained.count("SaveKernel") == 1
    monkeypatch.setattr(launch, "LONGEST_SESSION", -1.0)
    trained.faults["SaveKernel"] = [Fault(status=503)]
    with pytest.raises(KaggleError, match="answered 503"):
        launch.run_launch(plan_of(), tmp_path / "second", tmp_path / "ledger.csv", poll=0)


TOKEN = {
    "503": (Fault(status=503), "me"),
    "429": (Fault(status=429), "me"),
    "cut": (Fault(cut=True), "me"),
    "401": (Fault(status=401), "refused the token"),
}


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
        assert kaggle_api.whoami() == words
    except KaggleError as error:
        assert words in str(error)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "another")
    kaggle.faults.clear()
    with pytest.raises(KaggleError, match="no Kaggle token was found, or it was not accepted"):
        kaggle_api.whoami()


def test_an_act_is_looked_for_after_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def attempt() -> dict[str, object]:
        events.append("attempt")
        raise KaggleError("Kaggle answered 504", passing=True)

    def look() -> dict[str, object] | None:
        events.append("look")
        return {"version": 1} if events.count("sleep") == 2 else None

    monkeypatch.setattr(kaggle_api, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(kaggle_api, "time", SimpleNamespace(sleep=lambda seconds: events.append("sleep")))
    assert kaggle_api.retry(attempt, look) == {"version": 1}
    assert events == ["attempt", "sleep", "look"] * 2


def test_an_unfinished_push_is_found_by_the_same_command_and_repeated_by_the_next(
    trained: FakeKaggle, call: Call, tmp_path: Path
) -> None:
    push = ["push", "train", "--time-limit", "11h59m", "--record", tmp_path / "kernels.json"]
    status = ["status", "--record", tmp_path / "kernels.json"]
    trained.faults["SaveKernel"] = [Fault(status=503) for _ in range(4)]
    assert call(*push)[0] == 1
    code, _, said = call(*status)
    assert code == 2 and "has not arrived at Kaggle. Run the same claris push again" in said
    trained.faults["SaveKernel"] = [Fault(cut=True, acted=True)]
    trained.faults["GetKernel"] = [Fault(), *(Fault(status=503) for _ in range(4))]
    assert call(*push)[0] == 1 and len(trained.kernels["me/claris-train"]) == 1
    trained.faults.clear()
    assert call(*status)[0] == 0
    assert call(*push)[1] == "me/claris-train version 2\n"
    assert trained.kernels["me/claris-train"][0].request["sessionTimeoutSeconds"] == 12 * 3600


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


@pytest.mark.slow
def test_kernels_of_a_launch_and_those_pushed_by_hand_are_known(
    trained: FakeKaggle, call: Call, tmp_path: Path
) -> None:
    record = ["--record", tmp_path / "kernels.json"]
    run_launch(plan_of(), tmp_path)
    assert call("status", *record)[1] == "me/claris-first-all version 1: complete\n"
    built = tmp_path / "built"
    assert call("push", "train", "--build-only", built, "--user", "me", *record)[0] == 0
    assert call("status", *record)[1] == "me/claris-first-all version 1: complete\n"
    code, _, said = call("status", "claris-train", *record)
    assert code == 2 and f"Push it: kaggle kernels push -p {built}" in said
    kaggle_api.call("push", folder=str(built), timeout=0)
    assert call("status", *record)[1] == "me/claris-train version 1: queued\n"


def test_folds_and_flags_of_training_are_refused_for_other_kernels(kaggle: FakeKaggle, call: Call) -> None:
    for words in (["predict", "--fold", "1"], ["ensemble", "--", "--epochs", "3"]):
        code, _, said = call("push", *words)
        assert code == 2 and "they are for train alone" in said and kaggle.seen == []


@pytest.fixture
def submission(call: Call, finished: RunDir, generated: DataDir, tmp_path: Path) -> list[object]:
    """The command that submits a file, and the file."""
    out = tmp_path / "s.csv"
    assert call("ensemble", finished.root, "--data", generated.root, "--out", out)[0] == 0
    return ["submit", out, "--data", generated.root, "--ledger", tmp_path / "l.csv", "--poll", 0]


def test_an_upload_that_fails_is_tried_again(trained: FakeKaggle, call: Call, submission: list[object]) -> None:
    trained.faults["PUT"] = [Fault(status=503), Fault(status=500)]
    code, _, said = call(*submission)
    assert code == 0 and "could not be uploaded" in said, said
    assert len(trained.submissions) == len(trained.uploads) == 1


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
    assert [line["status"] for line in read_ledger(tmp_path / "l.csv")] == ["ERROR", "COMPLETE"]


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
    assert code == 2 and "were changed since (run/fold2/oof.csv)" in said and contents(out) == before


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


def test_a_refusal_for_the_weeks_quota_says_when_to_go_on(kaggle: FakeKaggle, call: Call, tmp_path: Path) -> None:
    reason = "Maximum weekly GPU quota of 30.00 hours reached."
    kaggle.answers["kernels.KernelsApiService/SaveKernel"] = {"error": reason}
    code, _, said = call("push", "train", "--record", tmp_path / "kernels.json")
    assert code == 1 and "quota begins anew" in said and pushes.read_record(tmp_path / "kernels.json") == []


def test_an_address_that_has_expired_is_asked_for_anew(
    kaggle: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.data["sample_submission.csv"] = b"id,label\n"
    kaggle.faults["GET"] = [Fault(status=403)]
    assert fetch.fetch_file("sample_submission.csv", tmp_path).read_bytes() == b"id,label\n"
    assert kaggle.count("DownloadDataFile") == 2 and "rules" not in capsys.readouterr().err


def test_a_full_disk_is_said_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(api: object) -> dict[str, object]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(kaggle_client.METHODS, "whoami", full)
    monkeypatch.setattr(kaggle_client, "log_in", lambda: object())
    answer = kaggle_client.run("whoami", {})
    reply = subprocess.CompletedProcess([], 0, stdout=json.dumps(answer), stderr="")
    monkeypatch.setattr(kaggle_api, "subprocess", SimpleNamespace(run=lambda *args, **named: reply, TimeoutExpired=()))
    with pytest.raises(DiskError, match="no space left on the disk"):
        kaggle_api.call("download_all", folder=str(tmp_path))


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
    assert kaggle_api.whoami() == "me"


def test_the_client_ends_with_the_process_that_started_it(kaggle: FakeKaggle) -> None:
    kaggle.faults["GetKernelSessionStatus"] = [Fault(pause=20.0)]
    code = "from claris_kaggle import kaggle_api; kaggle_api.call('status', ref='me/x', version=1)"
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
    """Whether the process is there, and not only its entry."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False
