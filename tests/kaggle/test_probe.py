"""Test the rehearsal: what it does and writes, and that the simulated server answers like its record."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claris_kaggle.core.findings import BAD, GOOD, WARNING, Finding
from claris_kaggle.core.paths import DataDir
from claris_kaggle.kaggle import account, api, wire_log
from claris_kaggle.kaggle.probe import _TESTED_VERSIONS
from tests.conftest import ROOT, contents
from tests.kaggle.test_session import Machine
from tests.support.client_here import ClientHere
from tests.support.kaggle_double import CANARY, FakeKaggle, Files, log_of
from tests.support.probe_replay import replay

OWNER = "anna-lovelace"
RECORDINGS = sorted((ROOT / "tests" / "support" / "recordings").glob("*.json"))


@pytest.fixture(scope="module")
def session(generated: DataDir, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Run the script that a probe pushes as Kaggle does."""
    machine = Machine(tmp_path_factory.mktemp("probe"), generated, new_layout=True)
    done = machine.run("probe", flags=["127.0.0.1:9"])  # asks nobody outside this machine
    assert done.returncode == 0, done.stdout + done.stderr
    assert "probe: 1 of 1 machines (100%)" in done.stdout
    return machine


@dataclass
class Rehearsal:
    """One probe of the simulated server, with its findings and its record."""

    findings: list[Finding]
    path: Path
    kaggle: FakeKaggle

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.path.read_text("utf-8")))

    def found(self, name: str) -> list[Finding]:
        return [one for one in self.findings if one.name == name]


def connect_to(kaggle: FakeKaggle, home: Path, patch: pytest.MonkeyPatch, session: Machine) -> None:
    """Connect the client to the simulated server. Its probe sessions write the output of the script."""
    for name, value in {**kaggle.environment(str(home)), "KAGGLE_USERNAME": OWNER}.items():
        patch.setenv(name, value)
    patch.setenv("XDG_CACHE_HOME", str(home))
    patch.setattr("claris_kaggle.kaggle.api._CALL_PAUSES", (0.0,))
    files: Files = {f"run/{name}": content for name, content in contents(session.working / "run").items()}
    kaggle.produce = lambda settings: (files, "complete")

    def keep_log(route: str, number: int) -> None:
        for versions in kaggle.kernels.values():
            for one in versions:
                one.log = log_of("probe: 1 of 1 machines (100%)", f"/home/{OWNER}/x")

    kaggle.on_request = keep_log


@pytest.fixture(scope="module")
def rehearsal(session: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder, kaggle = tmp_path_factory.mktemp("rehearsal"), FakeKaggle()
    kaggle.statuses = ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]
    with pytest.MonkeyPatch.context() as patch:
        connect_to(kaggle, folder, patch, session)
        patch.setattr("claris_kaggle.kaggle.api.subprocess", ClientHere)
        findings = account.check_probe(folder / "claris-probe.json", poll=0.0)
    yield Rehearsal(findings, folder / "claris-probe.json", kaggle)
    kaggle.close()


def test_a_rehearsal_goes_the_way_of_a_launch_without_a_gpu_and_deletes_its_kernel(rehearsal: Rehearsal) -> None:
    (found,) = rehearsal.found("probe")
    assert found.state == GOOD, found
    for words in ("version 1", "QUEUED, RUNNING, COMPLETE", "probe: 1 of 1 machines", "1 files, verified", "deleted"):
        assert words in found.found
    asked = [route.split("/")[-1] for route, _ in rehearsal.kaggle.seen]
    for method in ("SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput", "DeleteKernel"):
        assert method in asked
    push = next(body for route, body in rehearsal.kaggle.seen if route.endswith("SaveKernel"))
    assert push["isPrivate"] is True and not push.get("enableGpu")
    assert dict(rehearsal.kaggle.kernels) == {}


def test_it_says_what_the_image_holds_and_where_it_differs(rehearsal: Rehearsal) -> None:
    lines = " ".join(one.found for one in rehearsal.found("kaggle image"))
    for words in ("Python 3.", "torch", "CPU cores", "GB memory", "GB free", "competitions/histopathologic"):
        assert words in lines
    machine = rehearsal.record["machine"]
    assert machine["packages"]["timm"] and machine["disk"]["working"]["total_gb"] > 0 and machine["memory_gb"] > 0
    assert any("histopathologic-cancer-detection" in one for one in machine["inputs"]["folders"])
    machine["packages"]["torch"] = "9.9.9"
    assert any(one.startswith("torch 9.9.9 (tested with") for one in account._unexpected_versions(machine["packages"]))


def test_the_versions_that_are_expected_are_those_of_the_tests() -> None:
    lines = (ROOT / "kaggle-versions.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert {
        name: pinned[name] for name in _TESTED_VERSIONS if not pinned[name].startswith(_TESTED_VERSIONS[name])
    } == {}


def test_the_record_holds_no_token_name_header_source_or_address(rehearsal: Rehearsal) -> None:
    text = rehearsal.path.read_text("utf-8")
    for secret in (CANARY, OWNER, "Authorization", "Basic ", "BUNDLE", "SETTINGS", "/files/", str(Path.home())):
        assert secret.lower() not in text.lower(), secret
    assert "USER/claris-probe-" in text and rehearsal.record["deleted"] is True
    assert len(text) < 200_000


def test_the_record_has_every_request_with_what_was_answered(rehearsal: Rehearsal) -> None:
    recorded = [one["route"] for one in rehearsal.record["exchanges"] if "/" in one["route"]]
    asked = [route for route, _ in rehearsal.kaggle.seen]
    assert [one.split("?")[0] for one in recorded] == [one.replace(OWNER, "USER") for one in asked]
    refused = {step["name"]: step["result"] for step in rehearsal.record["steps"] if "not there" in step["name"]}
    assert refused == {
        "status of a version that is not there": "refused (404)",
        "status of a kernel that is not there": "refused (403)",
    }


def test_requests_of_the_clients_own_process_are_recorded(kaggle: FakeKaggle, tmp_path: Path) -> None:
    with wire_log._recording(tmp_path / "wire.jsonl"):
        api._call_once(api._QUOTA)
    recorded = [one["route"] for one in wire_log._read_exchanges(tmp_path / "wire.jsonl")]
    assert recorded == [route for route, _ in kaggle.seen] and "GetAcceleratorQuotaStatistics" in recorded[-1]


def fresh_double() -> Iterator[FakeKaggle]:
    kaggle = FakeKaggle()
    yield kaggle
    kaggle.close()


double = pytest.fixture(fresh_double)


def test_the_double_answers_a_record_as_it_was_recorded(rehearsal: Rehearsal, double: FakeKaggle) -> None:
    assert replay(rehearsal.record, double) == []


@pytest.mark.skipif(not RECORDINGS, reason="no record of the real Kaggle is here yet: claris doctor --probe makes one")
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_double_answers_as_kaggle_did(path: Path, double: FakeKaggle) -> None:
    assert replay(json.loads(path.read_text("utf-8")), double) == []


def find_log_stream(record: dict[str, Any]) -> dict[str, Any]:
    """Return the last recorded request for a log stream."""
    return [one for one in record["exchanges"] if "logs/stream" in one["route"]][-1]


def find_exchange(record: dict[str, Any], method: str, **wanted: str) -> dict[str, Any]:
    """Return the last recorded exchange of a method whose request has these values."""
    return [
        one for one in record["exchanges"]
        if one["route"].endswith(method) and all(one["request"].get(name) == value for name, value in wanted.items())
    ][-1]  # fmt: skip


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a bare number is taken": (
        lambda record: find_exchange(record, "SessionStatus", versionLabel="1").update(
            status=200, answer={"status": "COMPLETE"}
        ),
        "status is 200, and the double's 404",
    ),
    "a missing kernel is answered 404": (
        lambda record: find_exchange(record, "SessionStatus", versionLabel="v1").update(status=404), "status is 404"
    ),
    "a push names no version": (
        lambda record: find_exchange(record, "SaveKernel")["answer"].pop("versionNumber"),
        "versionNumber is the double's alone"
    ),
    "a push says something that is looked at": (
        lambda record: find_exchange(record, "SaveKernel")["answer"].update(invalidTags=["x"]),
        "invalidTags is not the double's"
    ),
    "a version is a text": (
        lambda record: find_exchange(record, "SaveKernel")["answer"].update(versionNumber="1"), "versionNumber is a str"
    ),
    "errors have another form": (
        lambda record: find_exchange(record, "SessionStatus", versionLabel="1").update(answer={"error": {"code": 404}}),
        "answer.error is not the double's",
    ),
    "the log comes as a page": (
        lambda record: find_log_stream(record).update(type="text/html"),
        "type is 'text/html'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_an_answer_that_the_double_would_not_give_is_named(rehearsal: Rehearsal, double: FakeKaggle, name: str) -> None:
    change, words = CHANGES[name]
    record = copy.deepcopy(rehearsal.record)
    change(record)
    found = replay(record, double)
    assert found and any(words in one for one in found), found


@pytest.mark.usefixtures("quick")
def test_a_push_that_is_refused_says_why_and_leaves_no_kernel(
    kaggle: FakeKaggle, session: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect_to(kaggle, tmp_path, monkeypatch, session)
    kaggle.rules_accepted = False
    findings = {one.name: one for one in account.check_probe(tmp_path / "p.json", poll=0.0)}
    assert findings["probe"].state == BAD and "/rules" in findings["probe"].hint
    assert "probe kernel" not in findings and dict(kaggle.kernels) == {}
    record = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert "rules" in record["error"] and OWNER not in json.dumps(record) and record["exchanges"]


@pytest.mark.usefixtures("quick")
def test_a_kernel_that_cannot_be_deleted_is_said_to_be_where_it_is(
    kaggle: FakeKaggle, session: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect_to(kaggle, tmp_path, monkeypatch, session)
    kaggle.statuses = ["ERROR"]
    kaggle.answers["kernels.KernelsApiService/DeleteKernel"] = {"errorMessage": "in use"}
    findings = {one.name: one for one in account.check_probe(tmp_path / "p.json", poll=0.0)}
    assert findings["probe"].state == BAD and "failed" in findings["probe"].hint
    (ref,) = kaggle.kernels
    assert findings["probe kernel"].state == WARNING
    assert findings["probe kernel"].hint == f"Delete it at https://www.kaggle.com/code/{ref}"
    assert json.loads((tmp_path / "p.json").read_text("utf-8"))["deleted"] is False
