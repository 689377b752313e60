"""Test the simulated Kaggle server with the real client: commands work, and it refuses what Kaggle refuses."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from claris_kaggle.kaggle.kernel_source import KernelSettings, compose_kernel
from tests.support.kaggle_double import FakeKaggle, log_of

COMPETITION = "histopathologic-cancer-detection"
KERNELS, COMPETITIONS = "kernels.KernelsApiService", "competitions.CompetitionApiService"


def kaggle_command(*arguments: object) -> str:
    """Run a command of the Kaggle client in this process with a new login, and return its output."""
    for name in ("kaggle", "kaggle.cli"):
        sys.modules.pop(name, None)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", ["kaggle", *map(str, arguments)])
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
            from kaggle.cli import main

            with contextlib.suppress(SystemExit):
                main()
    return said.getvalue()


def compose_train_kernel(folder: Path, push_token: str = "mark-1") -> Path:
    compose_kernel("train", folder, KernelSettings(), user="me", slug="claris-train", push_token=push_token)
    return folder


def send_request(kaggle: FakeKaggle, route: str, **body: Any) -> tuple[int, Any]:
    """Send a request without the client, and return the status and the response."""
    answer = requests.post(f"{kaggle.url}/api/v1/{route}", json=body, timeout=30)
    return answer.status_code, answer.json()


@pytest.fixture
def pushed(kaggle: FakeKaggle, tmp_path: Path) -> FakeKaggle:
    """Return a server with two versions of a kernel, pushed by the client's own command. The second one failed."""
    kaggle.produce = lambda settings: ({"run/fold0/oof.csv": settings["mark"].encode()}, "complete")
    for push_token, status in (("mark-1", "COMPLETE"), ("mark-2", "ERROR")):
        kaggle.statuses = [status]
        said = kaggle_command("kernels", "push", "-p", compose_train_kernel(tmp_path / push_token, push_token))
        assert f"Kernel version {push_token[-1]} successfully pushed" in said
        kaggle.kernels["me/claris-train"][-1].log = log_of(f"log of {push_token}")
    return kaggle


@pytest.fixture
def saved(kaggle: FakeKaggle) -> FakeKaggle:
    """Return a server with one version of a kernel that ended successfully with two files."""
    kaggle.produce = lambda settings: ({"a.csv": b"a", "b.csv": b"b"}, "")
    kaggle.statuses = ["COMPLETE"]
    assert send_request(kaggle, f"{KERNELS}/SaveKernel", **SAVE)[1]["versionNumber"] == 1
    return kaggle


def test_the_clients_own_commands_see_each_version(pushed: FakeKaggle, tmp_path: Path) -> None:
    assert "COMPLETE" in kaggle_command("kernels", "status", "me/claris-train/1")
    assert "ERROR" in kaggle_command("kernels", "status", "me/claris-train/2")
    assert "ERROR" in kaggle_command("kernels", "status", "me/claris-train")
    kaggle_command("kernels", "output", "me/claris-train/1", "-p", tmp_path / "out")
    assert (tmp_path / "out/run/fold0/oof.csv").read_bytes() == b"mark-1"
    assert "log of mark-1" in (tmp_path / "out/claris-train.log").read_text()
    assert "log of mark-2" in kaggle_command("kernels", "logs", "me/claris-train/2")
    assert kaggle_command("kernels", "logs", "me/claris-train/1", "--follow") == "log of mark-1\n"
    assert "wrong kernel slug" in kaggle_command("kernels", "status", "me/claris-trane")
    assert "Not found" in kaggle_command("kernels", "status", "me/claris-train/3")


def test_the_clients_own_commands_read_a_running_log_and_the_quota(kaggle: FakeKaggle, tmp_path: Path) -> None:
    kaggle.statuses, kaggle.hours_used = ["RUNNING"], 7.5
    kaggle_command("kernels", "push", "-p", compose_train_kernel(tmp_path / "k"), "--timeout", 3600)
    kaggle.kernels["me/claris-train"][0].log = log_of("fold 0", "fold 1")
    assert kaggle_command("kernels", "logs", "me/claris-train", "--follow") == "fold 0\nfold 1\n"
    assert "7.50h" in (said := kaggle_command("quota")) and "22.50h" in said and "2026-12-05" in said
    assert kaggle.hours_reserved() == 1.0


def test_the_clients_own_commands_submit_and_list(kaggle: FakeKaggle, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("id,label\na,0.5\n")
    said = kaggle_command("competitions", "submit", COMPETITION, "-f", tmp_path / "s.csv", "-m", "first")
    assert "Successfully submitted" in said and kaggle.uploads == [b"id,label\na,0.5\n"], said
    listed = [kaggle_command("competitions", "submissions", COMPETITION) for _ in range(2)]
    assert "PENDING" in listed[0] and "0.97123" in listed[1] and "first" in listed[1]
    kaggle.rules_accepted = False
    assert "You must accept this competition's rules" in kaggle_command("competitions", "submissions", COMPETITION)


def test_the_clients_own_push_shows_refusals(kaggle: FakeKaggle, tmp_path: Path) -> None:
    kaggle.session_limit = 0
    folder = compose_train_kernel(tmp_path / "k")
    assert "Maximum batch GPU session count of 0 reached" in kaggle_command("kernels", "push", "-p", folder)
    kaggle.session_limit = 2
    assert "Notebook not found" in kaggle_command("kernels", "push", "-p", folder)
    assert "deleted" in kaggle_command("kernels", "delete", "me/claris-train", "-y")
    kaggle.rules_accepted = False
    said = kaggle_command("kernels", "push", "-p", folder)
    assert "not valid competition sources" in said and "Kernel version 1 successfully pushed" in said


ONE = {"userName": "me", "kernelSlug": "claris-train"}
SAVE = {
    "slug": "me/claris-train",
    "newTitle": "claris train",
    "text": "1",
    "language": "python",
    "kernelType": "script",
}
WRONG: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a bare number of a version": (f"{KERNELS}/GetKernelSessionStatus", {**ONE, "versionLabel": "1"}, 404, "Not found"),
    "a version that is not there": (f"{KERNELS}/GetKernel", {**ONE, "versionLabel": "v3"}, 404, "Not found"),
    "a version in the slug": (f"{KERNELS}/GetKernel", {**ONE, "kernelSlug": "claris-train/1"}, 403, "kernels.get"),
    "no such kernel": (f"{KERNELS}/GetKernel", {**ONE, "kernelSlug": "claris-trane"}, 403, "kernels.get"),
    "an unknown field": (f"{KERNELS}/GetKernelSessionStatus", {**ONE, "version": 1}, 400, "cannot find field"),
    "a missing field": (f"{KERNELS}/GetKernelSessionStatus", {"userName": "me"}, 400, "Missing kernelSlug"),
    "a field of another kind": (f"{KERNELS}/ListKernelSessionOutput", {**ONE, "pageSize": "7"}, 400, "Invalid value"),
    "no such method": (f"{KERNELS}/GetKernelStatus", ONE, 404, "Not found"),
    "no such service": ("kernels.KernelService/GetKernel", ONE, 404, "Not found"),
    "a session of twelve hours": (f"{KERNELS}/SaveKernel", {**SAVE, "sessionTimeoutSeconds": 43200}, 400, "below"),
    "a source of a megabyte": (f"{KERNELS}/SaveKernel", {**SAVE, "text": "x" * 1_000_000}, 400, "1 megabytes"),
    "a title of four letters": (f"{KERNELS}/SaveKernel", {**SAVE, "newTitle": "four"}, 400, "between 5 and 50"),
    "a competition's address": (
        f"{KERNELS}/SaveKernel", {**SAVE, "competitionDataSources": ["c/x"]}, 400, "competition source"
    ),
    "another competition": (f"{COMPETITIONS}/ListSubmissions", {"competitionName": "x"}, 404, "Not found"),
    "a file that was not uploaded": (
        f"{COMPETITIONS}/CreateSubmission", {"competitionName": COMPETITION, "blobFileTokens": "t"}, 400, "not found"
    ),
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_what_kaggle_refuses_is_refused_in_both_forms(saved: FakeKaggle, nested: bool) -> None:
    saved.nested = nested
    for name, (route, body, status, words) in WRONG.items():
        found, answer = send_request(saved, route, **body)
        about = answer["error"] if nested else answer
        assert (found, about["code"]) == (status, status) and words in about["message"], name
    assert send_request(saved, f"{KERNELS}/GetKernelSessionStatus", **ONE, versionLabel="v1") == (
        200,
        {"status": "COMPLETE"},
    )


def test_a_refused_first_push_leaves_an_empty_kernel_and_a_projected_quota_passes(kaggle: FakeKaggle) -> None:
    def push(slug: str) -> Any:
        return send_request(
            kaggle, f"{KERNELS}/SaveKernel", **{**SAVE, "slug": slug, "newTitle": slug.split("/")[1]}, enableGpu=True
        )[1]

    kaggle.hours_used, kaggle.statuses = 19.0, ["RUNNING"]
    assert push("me/claris-one")["versionNumber"] == 1
    assert "projected to exceed maximum weekly GPU quota of 30" in push("me/claris-two")["error"]
    assert push("me/claris-two")["error"] == "Notebook not found"
    two = {"userName": "me", "kernelSlug": "claris-two"}
    assert send_request(kaggle, f"{KERNELS}/GetKernel", **two)[0] == 500
    assert send_request(kaggle, f"{KERNELS}/GetKernelSessionStatus", **two, versionLabel="v1")[0] == 404
    kaggle.kernels["me/claris-one"][0].statuses = ["COMPLETE"]
    assert push("me/claris-three")["versionNumber"] == 1
    assert send_request(kaggle, f"{KERNELS}/DeleteKernel", **two)[0] == 200
    kaggle.hours_used = 0
    assert push("me/claris-two")["versionNumber"] == 1


def test_looks_too_early_and_listings_that_lag(saved: FakeKaggle) -> None:
    one = saved.kernels["me/claris-train"][0]
    one.unlisted, one.lag = 2, [0, 1]
    looks: list[Callable[[], Any]] = [
        lambda: send_request(saved, f"{KERNELS}/GetKernelSessionStatus", **ONE, versionLabel="v1")[0],
        lambda: len(
            send_request(saved, f"{KERNELS}/ListKernelSessionOutput", **ONE, versionLabel="v1")[1].get("files", [])
        ),
    ]
    assert [[look() for _ in range(3)] for look in looks] == [[404, 404, 200], [0, 1, 2]]


def test_a_request_that_a_test_has_not_seen_is_not_answered_from_our_reading(kaggle: FakeKaggle) -> None:
    """The client reads every field of the responses."""
    from tests.support.kaggle_double.wire import check_answer

    with pytest.raises(AssertionError, match=r"GetKernelSessionStatus does not answer \['state'\]"):
        check_answer("GetKernelSessionStatus", json.loads('{"state": "COMPLETE"}'))
