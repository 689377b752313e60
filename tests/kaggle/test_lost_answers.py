"""Test lost and late responses: an earlier push or submission is found before it is repeated."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from claris_kaggle.core.errors import KaggleError
from claris_kaggle.core.paths import RunDir
from claris_kaggle.ensembling.ledger import read_ledger
from claris_kaggle.kaggle import api, client_process, download, kernel_output, kernel_push, submit
from tests.conftest import DEADLINE, run_files
from tests.kaggle.test_kaggle_trouble import make_plan, read_sessions, run_launch
from tests.kaggle.test_launch import check_launched_once, push, start_launch
from tests.support.client_here import ForkedCommand
from tests.support.kaggle_double import FakeKaggle, Fault
from tests.support.kaggle_double.faults import flat_error

Call = Callable[..., tuple[int, str, str]]
PAGE = Fault(status=200, body=b"<html>log in</html>", kind="text/html")
LOST = {
    "cut": Fault(cut=True, acted=True),
    "a page": Fault(status=200, body=b"<html></html>", kind="text/html", acted=True),
    "503": Fault(status=503, acted=True),
    "conflict": Fault(status=409, body=flat_error(409, "Conflict"), acted=True),
    "null": Fault(status=200, body=b"null", acted=True),
    "nothing in it": Fault(status=200, acted=True),
}
LOOKS = 3  # as many as `PAUSES` of the tests, less one


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", LOST)
def test_a_push_that_is_shown_late_is_not_pushed_again(trained: FakeKaggle, tmp_path: Path, name: str) -> None:
    trained.stale, trained.faults["SaveKernel"] = LOOKS, [LOST[name]]
    assert push(tmp_path / "k").version == 1
    assert trained.count("SaveKernel") == len(trained.kernels["me/claris-train"]) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["cut", "503", "null", "nothing in it"])
def test_a_submission_that_is_listed_late_is_not_sent_again(
    trained: FakeKaggle, call: Call, submission: list[object], name: str
) -> None:
    trained.submission_lag, trained.faults["CreateSubmission"] = LOOKS, [LOST[name]]
    code, shown, said = call(*submission)
    assert code == 0 and "submission 1000: complete" in shown, said
    assert len(trained.submissions) == trained.count("CreateSubmission") == 1


@pytest.mark.usefixtures("quick")
def test_a_submission_that_an_earlier_call_may_have_sent_is_looked_for_repeatedly(
    trained: FakeKaggle, call: Call, submission: list[object], tmp_path: Path
) -> None:
    trained.faults["CreateSubmission"] = [LOST["cut"]]
    trained.faults["ListSubmissions"] = [Fault(), *(Fault(status=503) for _ in range(4))]
    assert call(*submission)[0] == 1 and len(trained.submissions) == 1
    trained.faults.clear()
    trained.submissions[0]["looks"] = -LOOKS
    code, shown, said = call(*submission)
    assert code == 0 and "an earlier call may have sent this file" in said and "submission 1000" in shown
    assert trained.count("CreateSubmission") == 1 and len(read_ledger(tmp_path / "l.csv")) == 1
    assert not submit._attempt_file(tmp_path / "l.csv").exists()


@pytest.mark.usefixtures("quick")
def test_a_submission_begun_long_ago_is_sent_after_one_look(
    trained: FakeKaggle, call: Call, submission: list[object], tmp_path: Path
) -> None:
    push_token = (
        f"claris-{submit.check_submission(Path(str(submission[1])), read_submission_ids(submission)).sha256[:16]}"
    )
    attempt = submit._attempt_file(tmp_path / "l.csv")
    attempt.write_text(json.dumps({"mark": push_token, "time": 0.0}))
    code, _, said = call(*submission)
    assert code == 0 and "an earlier call" not in said and len(trained.submissions) == 1


def read_submission_ids(submission: list[object]) -> list[str]:
    """Return the ids of the submission file."""
    return [line.split(",")[0] for line in Path(str(submission[1])).read_text().splitlines()[1:]]


def test_a_push_and_a_submission_that_arrive_after_a_kill_are_found(trained: FakeKaggle, tmp_path: Path) -> None:
    running: list[ForkedCommand] = []

    def kill() -> None:
        os.killpg(running[-1].pid, signal.SIGKILL)

    for method in ("SaveKernel", "CreateSubmission"):
        trained.faults[method] = [Fault(cut=True, late=1, do=kill)]
    codes = []
    for _ in range(3):
        running.append(start_launch(tmp_path))
        running[-1].communicate(timeout=DEADLINE)
        codes.append(running[-1].returncode)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert trained.count("SaveKernel") == trained.count("CreateSubmission") == 1
    check_launched_once(trained, tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_push_without_a_version_stays_recorded_and_is_found_by_the_same_command(
    trained: FakeKaggle, call: Call, tmp_path: Path
) -> None:
    words = ["push", "train", "--record", tmp_path / "kernels.json"]
    trained.stale, trained.faults["SaveKernel"] = 100, [LOST["nothing in it"]]
    code, _, said = call(*words)
    assert code == 1 and "has no version number" in said and "Run the same command again" in said
    assert [one.kernel.version for one in kernel_push._read_pushes(tmp_path / "kernels.json")] == [0]
    trained.kernels["me/claris-train"][0].stale = LOOKS
    assert call(*words)[1] == "me/claris-train version 1\n" and trained.count("SaveKernel") == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("allowed", ["version", "none"])
def test_what_a_failed_session_had_finished_is_attached_by_its_version_or_done_without(
    trained: FakeKaggle,
    tmp_path: Path,
    finished: RunDir,
    allowed: str,
    lost: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = iter([(run_files(finished, (0,)), "running"), (run_files(finished), "complete")])
    trained.produce, trained.statuses = lambda settings: next(outcomes), ["ERROR"]
    trained.failed_output = allowed
    with pytest.raises(KaggleError, match=r"finished folds are in .* \(fold0\)"):
        run_launch(make_plan(), tmp_path)
    trained.statuses = ["COMPLETE"]
    trained.faults["SaveKernel"] = [LOST["cut"]] if lost else []
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    (second,) = trained.kernels["me/claris-first-all-r2"]
    assert second.request["kernelDataSources"] == (["me/claris-first-all/1"] if allowed == "version" else [])
    without = "does not attach the output of me/claris-first-all/1" in capsys.readouterr().err
    assert without == (allowed == "none") and trained.count("SaveKernel") == 2


@pytest.mark.usefixtures("quick")
def test_a_page_for_a_manifest_is_fetched_again(trained: FakeKaggle, call: Call, tmp_path: Path) -> None:
    trained.faults["GET"] = [PAGE]
    assert run_launch(make_plan(), tmp_path)["status"] == "COMPLETE"
    assert trained.faults["GET"] == [] and trained.count("SaveKernel") == 1
    record, out = ["--record", tmp_path / "first.json"], tmp_path / "out"
    kernel_push.record_push(tmp_path / "first.json", read_recorded_kernel(tmp_path))
    trained.faults["GET"] = [PAGE]
    code, _, said = call("pull", *record, "--out", out)
    assert code == 0 and trained.faults["GET"] == [] and (out / "run/fold0/oof.csv").exists(), said


def test_a_record_keeps_the_entries_that_only_another_version_knows(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    kernel_push.record_push(path, kernel_output.Kernel(ref="me/claris-train", version=1, push_token="m"), job="train")
    (entry,) = json.loads(path.read_text())["kernels"]
    entry["of a later version"] = [1]
    path.write_text(json.dumps({"kernels": [entry]}))
    kernel_push.record_push(path, kernel_output.Kernel(ref="me/claris-other", version=1, push_token="n"))
    assert json.loads(path.read_text())["kernels"][0] == entry
    assert kernel_push.find_recorded_push(path, "claris-train").push_token == "m"


def read_recorded_kernel(tmp_path: Path) -> kernel_output.Kernel:
    """Return the kernel that the launch has recorded."""
    session = read_sessions(tmp_path)[0]
    return kernel_output.Kernel(**{name: session[name] for name in ("ref", "version", "push_token")})


@pytest.mark.usefixtures("quick")
def test_a_page_for_a_file_of_the_competition_is_fetched_again(kaggle: FakeKaggle, tmp_path: Path) -> None:
    kaggle.data["sample_submission.csv"] = b"id,label\n"
    kaggle.faults["GET"] = [PAGE]
    assert download.fetch_file("sample_submission.csv", tmp_path).read_bytes() == b"id,label\n"
    assert kaggle.count("DownloadDataFile") == 2
    kaggle.faults["GET"] = [PAGE] * 10
    with pytest.raises(KaggleError, match="Kaggle sent another file"):
        download.fetch_file("sample_submission.csv", tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def test_a_download_is_not_read_before_it_is_written(kaggle: FakeKaggle) -> None:
    kaggle.data["large.zip"] = bytes(3_000_000)
    client = client_process._log_in()
    with requests.get(f"{kaggle.url}/data/large.zip", stream=True, timeout=10) as response:
        client.get_response_processor()(response)
        assert response.raw.tell() == 0


@pytest.mark.usefixtures("quick")
def test_what_killed_pulls_had_fetched_is_removed(trained: FakeKaggle, tmp_path: Path) -> None:
    left = tmp_path / "first/parts/all/.pull-x1"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    run_launch(make_plan(), tmp_path)
    assert not left.exists() and (tmp_path / "first/parts/all/run/fold0/oof.csv").exists()


MESSAGES = {
    "a page with 403": (Fault(status=403, body=b"<html></html>", kind="text/html"), "check for a proxy, a login page"),
    "400": (Fault(status=400, body=flat_error(400, "Bad label.")), "Bad label. Correct this"),
    "404": (Fault(status=404, body=flat_error(404, "no")), "not listed yet; this can take some minutes"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", MESSAGES)
def test_a_refusal_says_what_to_do(trained: FakeKaggle, call: Call, tmp_path: Path, name: str) -> None:
    fault, words = MESSAGES[name]
    record = ["--record", tmp_path / "kernels.json"]
    assert call("push", "train", *record)[0] == 0
    trained.faults["GetKernelSessionStatus"] = [fault]
    code, shown, said = call("status", *record)
    assert words in shown + said and code == (name != "404") and (shown + said).count("\n") == 1


@pytest.mark.usefixtures("quick")
def test_a_file_that_could_not_be_scored_is_said_to_cost_a_submission_when_sent_again(
    trained: FakeKaggle, call: Call, submission: list[object]
) -> None:
    trained.faults["ListSubmissions"] = [Fault(), Fault(do=lambda: trained.submissions[0].update(status="ERROR"))]
    code, _, said = call(*submission)
    assert code == 1 and "Check the file first: the same command sends it again" in said


def test_looks_for_what_may_have_happened_are_repeated_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, looks in ((0, 16), (503, 16), (409, 4), (429, 4)):
        seen: list[str] = []

        def attempt(status: int = status) -> dict[str, object]:
            raise KaggleError("no answer", status=status, retryable=True)

        def look(seen: list[str] = seen) -> None:
            seen.append("look")

        monkeypatch.setattr(api, "_CALL_PAUSES", (0.0, 0.0, 0.0))
        with pytest.raises(KaggleError):
            api._retry_attempt(attempt, look)
        assert len(seen) == looks
