"""The kernels on the simulated server: pushed, run, ended, listed late; weekly quota; refused pushes."""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.kaggle_double.wire import Refused

MANIFEST = "claris-session.json"
Files = dict[str, bytes]
Answer = dict[str, Any]
END_STATES = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
LARGEST_SOURCE = 1_000_000
LONGEST_SESSION = 12 * 3600


@dataclass
class Version:
    """A pushed version of a kernel: its source, how its session will go, and what it leaves.

    Attributes:
        statuses: what each look at the session sees, the last one from then on.
        unlisted: how many looks at the status come too early (USERS: 404 for some minutes after a push).
        stale: how many looks at the kernel see the version before it, or no kernel.
        lag: how many files each look at the output sees after the end, before it sees all (USERS: the listing lags).
    """

    text: str
    request: dict[str, Any]
    statuses: list[str]
    files: Files
    log: str = ""
    message: str = ""
    unlisted: int = 0
    stale: int = 0
    lag: list[int] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        return read_settings(self.text)

    @property
    def active(self) -> bool:
        return self.statuses[0] in ACTIVE


def read_settings(text: str) -> dict[str, Any]:
    """The settings in a kernel's script; without any, of a script that is not ours."""
    found = re.search(r"^SETTINGS = (.*)$", text, re.M)
    return dict(ast.literal_eval(found.group(1))) if found else {}


def with_manifest(files: Files, settings: dict[str, Any], status: str = "complete") -> Files:
    """The files with the manifest that a session would write."""
    facts = {name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for name, one in files.items()}
    about = {name: settings.get(name, "") for name in ("job", "mark", "commit", "folds")}
    about |= {"status": status, "message": "the loss is no number" if status == "failed" else ""}
    return {**files, MANIFEST: json.dumps({**about, "files": facts}).encode()}


def log_of(*lines: str, seconds: float = 1.0) -> str:
    """A session's log as Kaggle keeps it, its last line written after so many seconds (CLIENT: `_iter_blob_lines`)."""
    times = [seconds * (number + 1) / len(lines) for number in range(len(lines))]
    return json.dumps(
        [{"stream_name": "stdout", "time": time, "data": line + "\n"} for time, line in zip(times, lines, strict=True)]
    )


class KernelService:
    """The kernels on Kaggle, and the responses of its kernel service."""

    url = ""

    def __init__(self) -> None:
        self.kernels: dict[str, list[Version]] = defaultdict(list)
        self.empty: set[str] = set()  # kernels without a version, left by a refused first push
        self.unknown: set[str] = set()  # inputs that are not there
        self.rules_accepted = True
        self.produce: Callable[[dict[str, Any]], tuple[Files, str]] = lambda settings: ({}, "complete")
        self.statuses = ["QUEUED", "RUNNING", "COMPLETE"]
        self.unlisted = 0
        self.stale = 0
        # Which output of a kernel without a completed version is attached: named by "kernel", by "version", or "none".
        self.failed_output = "kernel"
        self.lag: list[int] = []
        self.session_limit = 2
        self.most_active = 0
        self.hours_used, self.hours_a_week = 0.0, 30.0
        self.week_begins = datetime.datetime(2026, 12, 5)

    def active(self) -> int:
        """Return the number of running sessions."""
        return sum(one.active for versions in self.kernels.values() for one in versions)

    def hours_reserved(self) -> float:
        """Each running GPU session reserves its whole time limit (USERS: the text of the projected-quota refusal)."""
        running = [one.request for versions in self.kernels.values() for one in versions if one.active]
        return sum(one.get("sessionTimeoutSeconds", LONGEST_SESSION) for one in running if one.get("enableGpu")) / 3600

    def refusal(self, body: dict[str, Any]) -> str:
        """Why a push is refused, in the `error` of a good answer (CLIENT: `kernels_push_cli` prints it)."""
        if f"{body['slug']}" in self.empty:
            return "Notebook not found"  # CLI-545, CLI-575; USERS: after a refused first push
        if body.get("enableGpu"):
            if self.active() >= self.session_limit:
                return f"Maximum batch GPU session count of {self.session_limit} reached."  # CLI-185
            if self.hours_used >= self.hours_a_week:
                return f"Maximum weekly GPU quota of {self.hours_a_week:.2f} hours reached."  # USERS
            if self.hours_used + self.hours_reserved() >= self.hours_a_week:  # USERS
                return (
                    "Session cannot start because currently running sessions are projected to exceed "
                    f"maximum weekly GPU quota of {self.hours_a_week:.0f}."
                )
        return ""

    def check_push(self, body: dict[str, Any]) -> str:
        """The owner/slug under which the kernel lands.

        Raises:
            Refused: what Kaggle answers with an error.
        """
        if len(body["text"].encode()) >= LARGEST_SOURCE:
            raise Refused(400, "The kernel source must be less than 1 megabytes in size.")  # kernel-run issue 2
        if not re.fullmatch(r"[\w-]+/[a-z0-9]+(-[a-z0-9]+)*", body["slug"]):
            raise Refused(400, f"Invalid slug {body['slug']!r}")
        if not 5 <= len(body["newTitle"]) <= 50:
            raise Refused(400, "Title must be between 5 and 50 characters")  # CLIENT: at least 5; USERS: at most 50
        if body["language"] not in ("python", "r", "rmarkdown") or body["kernelType"] not in ("script", "notebook"):
            raise Refused(400, "Invalid language or kernel type")  # CLIENT: valid_push_language_types
        if not 0 < body.get("sessionTimeoutSeconds", 1) < LONGEST_SESSION:
            raise Refused(400, "session_timeout_seconds must be below the maximum session time")  # USERS
        if any("/" in one for one in body.get("competitionDataSources", [])):
            raise Refused(400, "Invalid competition source")  # USERS: `c/slug` is refused
        # PAGES: the title decides; with another slug than the title's, the kernel lands elsewhere.
        slug = re.sub(r"[^a-z0-9]+", "-", body["newTitle"].lower()).strip("-")
        return f"{body['slug'].split('/')[0]}/{slug}"

    def do_SaveKernel(self, body: dict[str, Any]) -> Answer:
        ref = self.check_push(body)
        reason = self.refusal(body)
        if reason:
            if not self.kernels.get(ref):
                self.empty.add(ref)  # USERS: a shell without a version stays
            return {"error": reason}
        refused = self.drop_unknown_inputs(body)
        settings = read_settings(body["text"])
        files, status = self.produce(settings)
        kept = with_manifest(files, settings, status) if settings and status else files
        version = Version(
            body["text"], body, list(self.statuses), kept, unlisted=self.unlisted, stale=self.stale,
            lag=list(self.lag),
        )  # fmt: skip
        self.kernels[ref].append(version)
        self.most_active = max(self.most_active, self.active())
        number, address = len(self.kernels[ref]), f"{self.url}/code/{ref}"
        return {"ref": f"/code/{ref}", "url": address, "versionNumber": number, "kernelId": 7, **refused}

    def drop_unknown_inputs(self, body: dict[str, Any]) -> Answer:
        """The inputs that Kaggle does not find: the kernel runs without them (CLIENT: the CLI prints them)."""
        refused = {}
        for kind in ("dataset", "competition", "kernel", "model"):
            asked = body.get(f"{kind}DataSources", [])
            unknown = [one for one in asked if one in self.unknown]
            if kind == "kernel":
                unknown += [one for one in asked if not self.has_output(one)]
            if kind == "competition" and not self.rules_accepted:
                unknown = asked  # USERS: this is how rules that were not accepted show
            if unknown:
                body[f"{kind}DataSources"] = [one for one in asked if one not in unknown]
                refused[f"invalid{kind.capitalize()}Sources"] = unknown
        return refused

    def has_output(self, source: str) -> bool:
        """Return True if the output of owner/slug or owner/slug/version can be attached."""
        owner, slug, *number = source.split("/")
        versions = self.kernels.get(f"{owner}/{slug}", [])
        if any(one.statuses[0] == "COMPLETE" for one in versions):
            return True
        allowed = {"kernel": True, "version": bool(number), "none": False}[self.failed_output]
        return allowed and bool(versions) and (not number or 0 < int(number[0]) <= len(versions))

    def find_version(self, body: dict[str, Any]) -> tuple[str, int, Version]:
        """The version that a request names.

        Raises:
            Refused: 403 for a kernel that is not there or is another's, 404 for a version that is not.
        """
        ref, label = f"{body['userName']}/{body['kernelSlug']}", body.get("versionLabel", "")
        versions = self.kernels.get(ref)
        if "/" in body["kernelSlug"] or not (versions or ref in self.empty):
            raise Refused(403, "Permission 'kernels.get' was denied")  # CLI-1201: also for a slug with a version
        versions = versions or []
        number = len(versions)
        if label:
            # CLI-1201, tried live: the bare number is answered 404, `v1` is the first version.
            found = re.fullmatch(r"v([1-9]\d*)", label)
            number = int(found.group(1)) if found else 0
        if not 0 < number <= len(versions):
            raise Refused(404, "Not found")
        return ref, number, versions[number - 1]

    def do_GetKernel(self, body: dict[str, Any]) -> Answer:
        if f"{body['userName']}/{body['kernelSlug']}" in self.empty:
            raise Refused(500, "Internal error")  # USERS: GetKernel of a kernel without a version
        ref, number, one = self.find_version(body)
        if one.stale > 0:
            one.stale -= 1
            number -= 1
            if number == 0:
                raise Refused(403, "Permission 'kernels.get' was denied")
            one = self.kernels[ref][number - 1]
        inputs = {name: value for name, value in one.request.items() if name.endswith("DataSources")}
        about = {"ref": ref, "currentVersionNumber": number, **inputs}
        return {"metadata": about, "blob": {"source": one.text, "language": "python", "kernelType": "script"}}

    def do_GetKernelSessionStatus(self, body: dict[str, Any]) -> Answer:
        _, _, one = self.find_version(body)
        if one.unlisted > 0:
            one.unlisted -= 1
            raise Refused(404, "Not found")
        status = one.statuses[0]
        if len(one.statuses) > 1:
            one.statuses.pop(0)
        return {"status": status, **({"failureMessage": one.message} if one.message else {})}

    def do_ListKernelSessionOutput(self, body: dict[str, Any]) -> Answer:
        ref, number, one = self.find_version(body)
        if one.statuses[0] not in END_STATES:
            return {}  # USERS: nothing while it is running
        address = f"{self.url}/files/{ref}/{number}/"
        names = list(one.files)
        if one.lag and not body.get("pageToken"):
            names = names[: one.lag.pop(0)]
        files = [{"fileName": name, "url": address + urllib.parse.quote(name, safe="")} for name in names]
        size, start = min(body.get("pageSize", 20), 20), int(body.get("pageToken") or 0)
        more = {"nextPageToken": str(start + size)} if start + size < len(files) else {}
        return {"files": files[start : start + size], "log": one.log, **more}

    def do_DeleteKernel(self, body: dict[str, Any]) -> Answer:
        ref = f"{body['userName']}/{body['kernelSlug']}"
        if ref not in self.kernels and ref not in self.empty:
            raise Refused(403, "Permission 'kernels.delete' was denied")
        self.kernels.pop(ref, None)
        self.empty.discard(ref)
        return {}

    def do_GetAcceleratorQuotaStatistics(self, body: dict[str, Any]) -> Answer:
        # CLI-1029 and CLIENT: times are texts in seconds.
        gpu = {
            "timeUsed": f"{self.hours_used * 3600:.0f}s",
            "timeReserved": f"{self.hours_reserved() * 3600:.0f}s",
            "totalTimeAllowed": f"{self.hours_a_week * 3600:.0f}s",
        }
        return {"quotaRefreshTime": self.week_begins.isoformat() + ".000Z", "gpuQuota": gpu}

    def stream_log(self, owner: str, slug: str, label: str) -> tuple[str, bytes]:
        """Kind and body of a log's stream: events while the session runs, else the log (CLIENT: `kernels_logs_stream`).

        Raises:
            Refused: as for any kernel.
        """
        _, _, one = self.find_version({"userName": owner, "kernelSlug": slug, "versionLabel": label})
        if one.statuses[0] in END_STATES:
            return "application/json", one.log.encode()
        events = [f"data: {json.dumps(entry)}\n\n" for entry in json.loads(one.log or "[]")]
        return "text/event-stream", "".join([*events, "data: END_OF_LOG\n\n"]).encode()
