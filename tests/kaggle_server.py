"""A server on loopback that speaks the routes of Kaggle's client, remembers all, and fails on request."""

from __future__ import annotations

import ast
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.account_routes import AccountRoutes

KERNELS, COMPETITIONS = "kernels.KernelsApiService", "competitions.CompetitionApiService"
MANIFEST = "claris-session.json"
Files = dict[str, bytes]


@dataclass
class Version:
    """A pushed kernel: its source, how its session will go, and what it leaves."""

    text: str
    request: dict[str, Any]
    statuses: list[str]
    files: Files
    log: str = ""
    message: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return read_settings(self.text)


@dataclass
class Fault:
    """What goes wrong with one request: before it is acted upon, or after."""

    status: int = 0
    body: bytes = b"{}"
    kind: str = "application/json"
    cut: bool = False
    acted: bool = False
    pause: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    do: Callable[[], None] | None = None


def read_settings(text: str) -> dict[str, Any]:
    """The settings in a kernel's script."""
    found = re.search(r"^SETTINGS = (.*)$", text, re.M)
    assert found is not None
    return dict(ast.literal_eval(found.group(1)))


def with_manifest(files: Files, settings: dict[str, Any], status: str = "complete") -> Files:
    """The files with the manifest that a session would write."""
    facts = {name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for name, one in files.items()}
    about = {"job": settings["job"], "mark": settings["mark"], "commit": settings["commit"], "folds": settings["folds"]}
    about |= {"status": status, "message": "the loss is no number" if status == "failed" else ""}
    return {**files, MANIFEST: json.dumps({**about, "files": facts}).encode()}


class FakeKaggle(AccountRoutes):
    """What the server knows, and how it behaves."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[str, list[Version]] = defaultdict(list)
        self.submissions: list[dict[str, Any]] = []
        self.data: Files = {}
        self.uploads: list[bytes] = []
        self.allowed = 5
        self.limits: dict[str, int] | None = None
        self.unknown: set[str] = set()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: set[str] = set()
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.answers: dict[str, dict[str, Any]] = {}
        self.produce: Callable[[dict[str, Any]], tuple[Files, str]] = lambda settings: ({}, "complete")
        self.statuses = ["QUEUED", "RUNNING", "COMPLETE"]
        self.session_limit = 2
        self.most_active = 0
        self.on_request: Callable[[str, int], None] = lambda route, number: None
        self.lock = threading.Lock()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str) -> int:
        """How many requests of this method were acted upon or refused."""
        return sum(route.endswith("/" + method) for route, _ in self.seen)

    def environment(self, home: str) -> dict[str, str]:
        """What points the unmodified client here."""
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), self.url)
        return {
            **proxies, "NO_PROXY": "", "no_proxy": "", "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "me",
            "KAGGLE_KEY": "canary-0123456789abcdef", "KAGGLE_CONFIG_DIR": home, "HOME": home,
        }  # fmt: skip

    def active(self) -> int:
        """How many sessions are running."""
        return sum(one.statuses[0] in ("QUEUED", "RUNNING") for versions in self.kernels.values() for one in versions)

    def act(self, route: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Carry the request out and answer it."""
        method = route.split("/")[-1]
        if route in self.answers:
            return 200, self.answers[route]
        action = getattr(self, f"do_{method}", None)
        return action(body) if action else (404, {"code": 404, "message": "Not found"})

    def do_SaveKernel(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.active() >= self.session_limit:
            return 200, {"error": "Maximum batch GPU session count of 2 reached."}
        settings = read_settings(body["text"])
        refused = {}
        for kind in ("dataset", "competition", "kernel", "model"):
            unknown = [one for one in body.get(f"{kind}DataSources", []) if one in self.unknown]
            if unknown:
                body[f"{kind}DataSources"] = [one for one in body[f"{kind}DataSources"] if one not in unknown]
                refused[f"invalid{kind.capitalize()}Sources"] = unknown
        files, status = self.produce(settings)
        version = Version(body["text"], body, list(self.statuses), with_manifest(files, settings, status))
        self.kernels[body["slug"]].append(version)
        self.most_active = max(self.most_active, self.active())
        number = len(self.kernels[body["slug"]])
        address = f"{self.url}/code/{body['slug']}"
        return 200, {"ref": f"/code/{body['slug']}", "url": address, "versionNumber": number, **refused}

    def version(self, body: dict[str, Any]) -> Version | None:
        versions = self.kernels.get(f"{body.get('userName')}/{body.get('kernelSlug')}", [])
        number = int(body.get("versionLabel") or len(versions) or 1)
        return versions[number - 1] if 0 < number <= len(versions) else None

    def do_GetKernel(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ref = f"{body['userName']}/{body['kernelSlug']}"
        if ref not in self.kernels:
            return 403, {"code": 403, "message": "Permission denied"}
        newest = self.kernels[ref][-1]
        inputs = {name: value for name, value in newest.request.items() if name.endswith("DataSources")}
        about = {"currentVersionNumber": len(self.kernels[ref]), **inputs}
        return 200, {"metadata": about, "blob": {"source": newest.text}}

    def do_IntrospectToken(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {"active": body["token"] == "a-token", "username": "me"}

    def do_GetKernelSessionStatus(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        one = self.version(body)
        if one is None:
            return 403, {"code": 403, "message": "Permission denied"}
        status = one.statuses[0]
        if len(one.statuses) > 1:
            one.statuses.pop(0)
        return 200, {"status": status, "failureMessage": one.message}

    def do_ListKernelSessionOutput(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        one = self.version(body)
        if one is None:
            return 403, {"code": 403, "message": "Permission denied"}
        ref = f"{body['userName']}/{body['kernelSlug']}"
        number = int(body.get("versionLabel") or 1)
        address = f"{self.url}/files/{ref}/{number}/"
        files = [{"fileName": name, "url": address + urllib.parse.quote(name, safe="")} for name in one.files]
        start = int(body.get("pageToken") or 0)
        more = {"nextPageToken": str(start + 7)} if start + 7 < len(files) else {}
        return 200, {"files": files[start : start + 7], "log": one.log, **more}

    def do_StartSubmissionUpload(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {"token": "upload-1", "createUrl": f"{self.url}/upload/1"}

    def do_CreateSubmission(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.allowed < 1:
            return 400, {"code": 400, "message": "Submission limit reached"}
        ref = 1000 + len(self.submissions)
        self.submissions.append(
            {"ref": ref, "description": body.get("submissionDescription", ""), "status": "PENDING", "looks": 0}
        )
        self.allowed -= 1
        return 200, {"message": "Successfully submitted", "ref": ref}

    def do_ListSubmissions(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for one in self.submissions:
            one["looks"] += 1
            if one["looks"] > 1 and one["status"] == "PENDING":
                one |= {"status": "COMPLETE", "publicScore": "0.97123", "privateScore": "0.96543"}
        return 200, {"submissions": [{key: one[key] for key in one if key != "looks"} for one in self.submissions]}

    def do_GetSubmissionLimits(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, self.limits if self.limits is not None else {
            "numToday": 5 - self.allowed,
            "numAllowedNow": self.allowed,
        }

    def redirect(self, route: str, body: dict[str, Any]) -> str:
        """Where a download is redirected to; an empty text for other requests."""
        if route.endswith("/DownloadDataFile"):
            return f"{self.url}/data/{urllib.parse.quote(body['fileName'], safe='')}"
        if route.endswith("/DownloadDataFiles"):
            return f"{self.url}/data/{body['competitionName']}.zip"
        return ""

    def find(self, path: str) -> bytes | None:
        """The content at a plain address."""
        parts = urllib.parse.urlsplit(path).path.strip("/").split("/")
        if parts[0] == "data":
            return self.data.get(urllib.parse.unquote(parts[1]))
        if parts[0] == "files":
            versions = self.kernels.get(f"{parts[1]}/{parts[2]}", [])
            return versions[int(parts[3]) - 1].files.get(urllib.parse.unquote(parts[4]))
        return None


def make_handler(kaggle: FakeKaggle) -> type[http.server.BaseHTTPRequestHandler]:
    """The request handler of this server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def spoiled(self, name: str, act: Callable[[], object]) -> bool:
            """Whether a fault took this request; what is to be acted upon first is."""
            faults = kaggle.faults.get(name)
            if not faults:
                return False
            fault = faults.pop(0)
            if fault.acted:
                act()
            if fault.do:
                fault.do()
            if fault.pause:
                time.sleep(fault.pause)
            if fault.cut:
                self.close_connection = True
                self.connection.close()
            elif fault.status:
                self.reply(fault.status, fault.body, fault.kind, **fault.headers)
            else:
                return False
            return True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kaggle.authorizations.add(self.headers.get("Authorization", ""))
            route = urllib.parse.urlsplit(self.path).path.split("/v1/", 1)[-1]
            body = json.loads(content or b"{}")
            with kaggle.lock:
                kaggle.seen.append((route, body))
                number = len(kaggle.seen)
                if self.spoiled(route.split("/")[-1], lambda: kaggle.act(route, body)):
                    return
                address = kaggle.redirect(route, body)
                status, answer = (302, {}) if address else kaggle.act(route, body)
                kaggle.on_request(route, number)
            if address:
                self.reply(302, b"", Location=address)
            else:
                self.reply(status, json.dumps(answer).encode())

        def do_GET(self) -> None:
            with kaggle.lock:
                if self.spoiled("GET", lambda: None):
                    return
            if kaggle.stream_log(self):
                return
            content = kaggle.find(self.path)
            if content is None:
                self.reply(404, b"<html>not here</html>", "text/html")
            else:
                self.reply(200, content, "application/octet-stream", Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with kaggle.lock:
                kaggle.seen.append(("PUT", {}))
                if self.spoiled("PUT", lambda: kaggle.uploads.append(content)):
                    return
                kaggle.uploads.append(content)
            self.reply(200, b"")

        def do_CONNECT(self) -> None:
            kaggle.seen.append(("CONNECT " + self.path, {}))
            self.reply(403, b"")

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
