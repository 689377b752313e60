"""Test the GPU hours before a push: what Kaggle reports, and whether a plan fits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from claris_kaggle.core import console
from claris_kaggle.core.config import apply_preset
from claris_kaggle.core.errors import KaggleError
from claris_kaggle.kaggle import api, launch, quota
from claris_kaggle.kaggle.account import _prepare_account
from claris_kaggle.kaggle.client_answers import _QuotaAnswer
from claris_kaggle.kaggle.launch_state import Plan, _Launch, _PartSession
from claris_kaggle.kaggle.quota import _compare_with_quota, _describe_quota, _Fit, _GpuQuota, _parse_quota
from tests.support.kaggle_double import FakeKaggle, Fault, log_of

Call = Callable[..., tuple[int, str, str]]
QUOTA = "kernels.KernelsApiService/GetAcceleratorQuotaStatistics"
RENEWS = datetime(2026, 12, 5, tzinfo=UTC)


def hours(used: float, reserved: float, allowed: float = 30.0) -> _GpuQuota:
    return _GpuQuota(used=used, reserved=reserved, allowed=allowed, renews=RENEWS)


@pytest.mark.parametrize(
    ("found", "needed", "fit", "words"),
    [
        (hours(0, 0), 1.1, _Fit.FITS, "30.0 h are free"),
        (hours(20, 0), 10.0, _Fit.FITS, "10.0 h are free"),
        (hours(20, 0), 10.1, _Fit.WAITS, "10.0 h are free: sessions may have to wait until Sat 2026-12-05 00:00 UTC"),
        (hours(10, 11), 10.0, _Fit.WAITS, "9.0 h are free"),
        (hours(30, 0), 1.0, _Fit.WAITS, "no hours are left: Kaggle starts no session until the quota resets"),
        (hours(19, 12), 1.0, _Fit.WAITS, "until a running session ends, or the quota resets"),
        (hours(0, 0), 30.5, _Fit.WEEKS, "a week has 30 h"),
        (hours(0, 0, 0), 1.0, _Fit.NEVER, "verified at https://www.kaggle.com/settings"),
        (None, 1.0, _Fit.FITS, "returned no GPU hours"),
        (hours(20, 0), None, _Fit.FITS, "the plan's hours are not known, and 10.0 h are free"),
    ],
)
def test_a_plan_fits_where_the_hours_neither_used_nor_reserved_cover_it(
    found: _GpuQuota | None, needed: float | None, fit: _Fit, words: str
) -> None:
    verdict = _compare_with_quota(found, needed)
    assert verdict.fit is fit and words in verdict.text


@pytest.mark.usefixtures("quick")
def test_the_quota_is_read_as_the_client_gives_it(kaggle: FakeKaggle) -> None:
    week = {"quotaRefreshTime": "2026-12-05T00:00:00.000Z"}
    gpu = {"timeUsed": "45000.500s", "timeReserved": "41400s", "totalTimeAllowed": "108000s"}
    kaggle.answers[QUOTA] = {**week, "gpuQuota": gpu}
    found = quota._ask_quota()
    assert found is not None and found.renews == RENEWS
    assert (found.used, found.reserved, found.allowed) == pytest.approx((12.5, 11.5, 30.0), abs=1e-3)
    assert _describe_quota(found) == (
        "12.5 h used and 11.5 h reserved by running sessions, of 30 h a week; the quota resets Sat 2026-12-05 00:00 UTC"
    )
    kaggle.answers[QUOTA] = {**week, "gpuQuota": {"totalTimeAllowed": "108000s"}}  # zeros are left out
    found = quota._ask_quota()
    assert found is not None and (found.used, found.reserved, found.free) == (0.0, 0.0, 30.0)
    kaggle.answers[QUOTA] = week
    assert quota._ask_quota() is None


@pytest.mark.parametrize("text", ["", "soon", "2026-13-40"])
def test_a_time_that_is_none_is_said_to_be_unknown(text: str) -> None:
    found = _parse_quota(_QuotaAnswer(known=True, used=0, reserved=0, allowed=3600, renews=text))
    assert found is not None and found.renews is None and "unknown time" in _describe_quota(found)


def make_plan(epochs: int = 2) -> Plan:
    return Plan(name="first", flags=("--epochs", str(epochs)))


@pytest.mark.usefixtures("quick")
def test_a_launch_says_the_hours_before_its_first_push_and_the_sessions_progress_while_it_waits(
    trained: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LOG_INTERVAL", 0.0)
    monkeypatch.setattr(console, "_AGE_SHARE", 0.0)
    line = "fold 0 epoch 2/6: 3,500 of 12,000 images (29%), 50/s, 2 min left, AUC 0.9712"
    trained.statuses = ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]
    trained.hours_used = 1.0

    def say_it(route: str, number: int) -> None:
        for version in trained.kernels["me/claris-first-all"]:
            version.log = log_of(line)

    trained.on_request = say_it
    launch.run_launch(make_plan(), tmp_path / "first", tmp_path / "ledger.csv", poll=0)
    said = capsys.readouterr().err
    assert said.count("GPU hours: 1.0 h used and 0.0 h reserved") == 1 and "29.0 h are free" in said
    assert line in said and " left" in said
    asked = [route.split("/")[-1] for route, _ in trained.seen]
    assert asked.count("GetAcceleratorQuotaStatistics") == 1
    assert asked.index("GetAcceleratorQuotaStatistics") < asked.index("SaveKernel")
    _prepare_account(_Launch(tmp_path / "first", make_plan()))
    assert trained.count("GetAcceleratorQuotaStatistics") == 1  # nothing is left to push


@pytest.mark.usefixtures("quick")
def test_a_plan_that_cannot_fit_is_said_before_the_first_push(
    kaggle: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _prepare_account(_Launch(tmp_path / "first", make_plan(epochs=400)))
    assert "a week has 30 h: the launch takes several weeks" in capsys.readouterr().err
    assert kaggle.count("SaveKernel") == 0


@pytest.mark.usefixtures("quick")
def test_only_what_is_still_to_be_pushed_needs_hours(
    kaggle: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(name="first", parts=((0,), (1,), (2,)))
    begun = _Launch(tmp_path / "first", plan)
    one = Plan(name="first", parts=((2,),)).hours() or 0.0
    begun.sessions[0] = [_PartSession(push_token="a", ref="me/a", version=1, outcome="complete")]
    begun.sessions[1] = [_PartSession(push_token="b", ref="me/b", version=1)]
    _prepare_account(begun)
    assert f"the plan takes about {one:.1f} h" in capsys.readouterr().err
    begun.sessions[1][0].outcome = "stopped"
    _prepare_account(begun)
    assert f"the plan takes about {2 * one:.1f} h" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_an_account_without_gpus_pushes_nothing_and_is_told_the_page(
    kaggle: FakeKaggle, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kaggle.hours_a_week = 0.0
    code, shown, said = call("launch", "first", "--poll", "0")
    last = said.splitlines()[-1]
    assert (code, shown) == (1, "") and "0 GPU hours" in last and "https://www.kaggle.com/settings" in last
    assert kaggle.count("SaveKernel") == 0


@pytest.mark.usefixtures("quick")
def test_a_quota_that_cannot_be_had_stops_no_launch(
    kaggle: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.faults["GetAcceleratorQuotaStatistics"] = [Fault(status=404)]
    _prepare_account(_Launch(tmp_path / "first", make_plan()))
    assert "GPU hours: unknown" in capsys.readouterr().err


def test_a_dry_run_asks_for_no_quota(kaggle: FakeKaggle, call: Call) -> None:
    code, shown, _ = call("launch", "first", "--dry-run")
    assert code == 0 and "30 a week" in shown and kaggle.seen == []


@pytest.mark.usefixtures("quick")
def test_a_failed_call_names_what_was_asked(kaggle: FakeKaggle) -> None:
    kaggle.faults["GetAcceleratorQuotaStatistics"] = [Fault(status=400, body=b'{"code": 400, "message": "no"}')]
    with pytest.raises(KaggleError, match="did not return the GPU hours"):
        api._call_once(api._QUOTA)


def test_the_hours_of_a_plan_follow_from_the_recipe_that_its_sessions_train_by() -> None:
    def hours(*flags: str, weights_from: str = "") -> float:
        found = Plan(name="first", flags=flags, weights_from=weights_from).hours()
        assert found is not None
        return found

    assert hours("--epochs=8") == hours("--epochs", "8") > hours("--epochs", "7")
    assert hours() == hours("--epochs", str(apply_preset({}).epochs)) > hours("--resolution", "96")
    assert hours("--weights", "none") == hours("--weights", "none", "--epochs", "20", "--stem", "pool4")
    assert hours("--weights", "none") < hours("--weights", "none", "--stem", "pool")  # it has a cheaper first pooling
    assert Plan(name="first", flags=("--model", "no-such-net")).hours() is None
    assert hours(weights_from="me/weights/densenet.pth") == hours()
