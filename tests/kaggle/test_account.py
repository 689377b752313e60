"""Test `claris doctor --account`: login, rules, submissions and GPU hours, each with the page that fixes a problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.core.findings import BAD, GOOD, WARNING, Finding
from claris_kaggle.kaggle import account, api
from tests.conftest import ROOT
from tests.support.kaggle_double import FakeKaggle, Fault

Call = Callable[..., tuple[int, str, str]]
QUOTA = "kernels.KernelsApiService/GetAcceleratorQuotaStatistics"
NO_LIST = Fault(status=200, body=b'{"competitions": []}')


def check_account_by_name() -> dict[str, Finding]:
    return {one.name: one for one in account.check_account()}


@pytest.mark.usefixtures("quick")
def test_an_account_that_may_launch_is_told_so(kaggle: FakeKaggle) -> None:
    kaggle.hours_used = 12.5
    found = check_account_by_name()
    assert [(name, one.state) for name, one in found.items()] == [
        ("kaggle account", GOOD), ("rules", GOOD), ("submissions", GOOD), ("gpu hours", GOOD),
    ]  # fmt: skip
    assert found["kaggle account"].found == (
        "me, logged in by a user name and key (kaggle.json, or KAGGLE_USERNAME and KAGGLE_KEY)"
    )
    assert found["submissions"].found == "open, 5 left today"
    assert "12.5 h used and 0.0 h reserved" in found["gpu hours"].found and "h are free" in found["gpu hours"].found


STATES: dict[str, tuple[Callable[[FakeKaggle], object], str, str, str]] = {
    "rules not accepted": (
        lambda kaggle: setattr(kaggle, "rules_accepted", False), "rules", BAD, "-cancer-detection/rules"
    ),
    "a competition that it does not show": (
        lambda kaggle: kaggle.faults.update(GetCompetition=[Fault(status=404)], ListCompetitions=[NO_LIST]),
        "rules", WARNING, "/rules",
    ),
    "submissions closed": (
        lambda kaggle: setattr(kaggle, "submissions_disabled", True), "submissions", BAD, "/submissions"
    ),
    "no submission left": (lambda kaggle: setattr(kaggle, "allowed", 0), "submissions", WARNING, "after midnight UTC"),
    "phone not verified": (lambda kaggle: setattr(kaggle, "hours_a_week", 0.0), "gpu hours", BAD, "https://www.kaggle.com/settings"),
    "GPU hours unknown": (
        lambda kaggle: kaggle.answers.update({QUOTA: {}}), "gpu hours", WARNING, "https://www.kaggle.com/settings"
    ),
    "GPU hours used up": (
        lambda kaggle: setattr(kaggle, "hours_used", 30.0), "gpu hours", WARNING, ""
    ),
}  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", STATES)
def test_what_stands_in_the_way_is_named_with_the_page_that_mends_it(kaggle: FakeKaggle, name: str) -> None:
    change, where, state, page = STATES[name]
    change(kaggle)
    found = check_account_by_name()
    assert found[where].state == state and page in found[where].hint
    others = [one.state for other, one in found.items() if other != where]
    assert others and set(others) == {GOOD}


@pytest.mark.usefixtures("quick")
def test_one_question_that_fails_leaves_the_other_answers(kaggle: FakeKaggle) -> None:
    kaggle.faults["GetCompetition"] = [Fault(status=400, body=b'{"code": 400, "message": "no"}')]
    found = check_account_by_name()
    assert found["rules"].state == BAD and "400" in found["rules"].found
    assert found["gpu hours"].state == GOOD


@pytest.mark.usefixtures("quick")
def test_where_a_competition_cannot_be_asked_for_the_list_of_those_entered_is_read(kaggle: FakeKaggle) -> None:
    kaggle.faults["GetCompetition"] = [Fault(status=403)]
    answer = api._call_once(api._COMPETITION_STATE, competition=api._COMPETITION)
    assert answer.found and answer.entered and answer.daily == 5 and kaggle.count("ListCompetitions") == 1


@pytest.mark.usefixtures("quick")
def test_without_a_token_every_way_to_log_in_is_named(
    kaggle: FakeKaggle, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    (only,) = account.check_account()
    assert only.state == BAD and kaggle.seen == []
    for way in ("kaggle auth login", "KAGGLE_API_TOKEN", "access_token", "kaggle.json", "kaggle.com/settings"):
        assert way in only.hint, way


@pytest.mark.usefixtures("quick")
def test_an_api_token_is_told_from_a_key(kaggle: FakeKaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-token")
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.delenv("KAGGLE_USERNAME")
    assert account._describe_login(api._call_once(api._WHOAMI)).found == (
        "me, logged in by an API token (KAGGLE_API_TOKEN or ~/.kaggle/access_token)"
    )


def test_the_page_describes_every_way_to_log_in() -> None:
    page = (ROOT / "docs" / "kaggle.md").read_text("utf-8")
    for way in (
        "kaggle auth login",
        "KAGGLE_API_TOKEN",
        "~/.kaggle/access_token",
        "kaggle.json",
        "https://www.kaggle.com/settings",
    ):
        assert way in page, way


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_line_for_each_and_fails_on_a_bad_one(
    kaggle: FakeKaggle, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle.rules_accepted = False
    code, shown, _ = call("doctor", "--account", "--json")
    findings = {one["name"]: one for one in json.loads(shown)["findings"]}
    assert code == 1 and findings["rules"]["state"] == BAD and findings["gpu hours"]["state"] == GOOD


def test_the_rehearsal_is_proposed_once_for_each_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for user, proposed in (("anna", True), ("anna", False), ("bert", True), ("anna", False)):
        account._suggest_probe(user)
        said = capsys.readouterr().err
        assert ("claris doctor --probe" in said and user in said) is proposed
    (account.default_cache() / account._ACCOUNTS_FILE).write_text("{not JSON")
    account._suggest_probe("anna")
    assert "claris doctor --probe" in capsys.readouterr().err
