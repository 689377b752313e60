"""The HTTP of the simulated server: routes, faults on request, and a record of all requests."""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.support.kaggle_double.competition_service import COMPETITION, CompetitionService
from tests.support.kaggle_double.dataset_service import DatasetService
from tests.support.kaggle_double.faults import Fault, flat_error, nested_error
from tests.support.kaggle_double.kernel_service import KernelService
from tests.support.kaggle_double.wire import Refused, check_answer, check_request

LOG_STREAM = "kernels/logs/stream/"
LOOKS = ("GetKernel", "ListSubmissions")
# A key of the legacy form, 32 hexadecimal digits. It must not appear in any output.
CANARY = "c0ffee00" * 4


class FakeKaggle(KernelService, CompetitionService, DatasetService):
    """The state and the behaviour of the server."""

    def __init__(self) -> None:
        KernelService.__init__(self)
        CompetitionService.__init__(self)
        DatasetService.__init__(self)
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: set[str] = set()
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.late: list[tuple[Callable[[], object], list[int]]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.nested = False  # the form of error bodies: USERS saw both
        self.token_expired = False
        self.stream_seconds = 0.0
        self.on_request: Callable[[str, int], None] = lambda route, number: None
        self.lock = threading.Lock()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str) -> int:
        """Return the number of requests of this method that the server acted on or refused."""
        return sum(route.endswith("/" + method) for route, _ in self.seen)

    def environment(self, home: str) -> dict[str, str]:
        """Return the environment variables that point the unmodified client to this server."""
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), self.url)
        return {
            **proxies, "NO_PROXY": "", "no_proxy": "", "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "me",
            "KAGGLE_KEY": CANARY, "KAGGLE_CONFIG_DIR": home, "HOME": home,
        }  # fmt: skip

    def act(self, route: str, body: Any) -> tuple[int, bytes, dict[str, str]]:
        """Carry the request out: status, body and headers of the answer."""
        try:
            if self.token_expired:
                raise Refused(401, "Unauthenticated")
            method = check_request(route, body)
            if route in self.answers:
                return 200, json.dumps(self.answers[route]).encode(), {}
            address = self.redirect(method, body)
            if address:
                return 302, b"", {"Location": address}
            action = getattr(self, f"do_{method}", None)
            if action is None:
                raise Refused(404, f"Not found: {route}")
            answer = action(body)
            check_answer(method, answer)
            return 200, json.dumps(answer).encode(), {}
        except Refused as error:
            return error.status, self.error_body(error), {}

    def act_late(self, method: str) -> None:
        """Carry out what was put off until this many looks have come."""
        for act, left in [*self.late] if method in LOOKS else []:
            left[0] -= 1
            if left[0] < 1:
                act()
        self.late = [(act, left) for act, left in self.late if left[0] > 0]

    def error_body(self, error: Refused) -> bytes:
        """An error in the form of now."""
        form = nested_error(error.status, error.message, "FAILED") if self.nested else None
        return form or flat_error(error.status, error.message)

    def do_IntrospectToken(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"active": body["token"] == "a-token", "username": "me"}

    def redirect(self, method: str, body: dict[str, Any]) -> str:
        """Where a download is redirected to; an empty text for other requests."""
        if method == "DownloadDataset":
            files = self.dataset_files(body)
            if body["fileName"] not in files:
                raise Refused(404, "Not found")
            name = urllib.parse.quote(body["fileName"], safe="")
            return f"{self.url}/datasets/{body['ownerSlug']}/{body['datasetSlug']}/{name}"
        if method not in ("DownloadDataFile", "DownloadDataFiles"):
            return ""
        self.require_entry(body)
        name = body["fileName"] if method == "DownloadDataFile" else f"{COMPETITION}.zip"
        return f"{self.url}/data/{urllib.parse.quote(name, safe='')}"

    def find(self, path: str) -> bytes | None:
        """The content at a plain address."""
        parts = urllib.parse.urlsplit(path).path.strip("/").split("/")
        if parts[0] == "data":
            return self.data.get(urllib.parse.unquote(parts[1]))
        if parts[0] == "datasets":
            return self.datasets[f"{parts[1]}/{parts[2]}"].get(urllib.parse.unquote(parts[3]))
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
            """Return True if a fault answered this request. Acts on the request first if the fault says so."""
            faults = kaggle.faults.get(name)
            if not faults:
                return False
            fault = faults.pop(0)
            if fault.late:
                kaggle.late.append((act, [fault.late]))
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
                status, answer, headers = kaggle.act(route, body)
                kaggle.act_late(route.split("/")[-1])
                kaggle.on_request(route, number)
            self.reply(status, answer, **headers)

        def do_GET(self) -> None:
            address = urllib.parse.urlsplit(self.path)
            with kaggle.lock:
                if self.spoiled("GET", lambda: None):
                    return
                streamed = self.log_stream(address) if LOG_STREAM in address.path else None
            if streamed is not None:
                self.send_stream(*streamed)
                return
            content = kaggle.find(self.path)
            if content is None:
                self.reply(404, b"<html>not here</html>", "text/html")
            else:
                self.reply(200, content, "application/octet-stream", Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

        def log_stream(self, address: urllib.parse.SplitResult) -> tuple[int, bytes, str]:
            """Status, body and kind of a log's stream."""
            kaggle.seen.append((address.path.split("/v1/", 1)[-1], {}))
            # CLI-1201: the version is a query parameter; in the path it is answered 404.
            parts = address.path.split(LOG_STREAM)[1].split("/")
            label = urllib.parse.parse_qs(address.query).get("versionLabel", [""])[0]
            try:
                if len(parts) != 2:
                    raise Refused(404, "Not found")
                kind, body = kaggle.stream_log(parts[0], parts[1], label)
                return 200, body, kind
            except Refused as error:
                return error.status, kaggle.error_body(error), "application/json"

        def send_stream(self, status: int, body: bytes, kind: str) -> None:
            """Send a log; the stream of a running session stays open (CLI-999), for `stream_seconds` here."""
            if kind != "text/event-stream" or not kaggle.stream_seconds:
                self.reply(status, body, kind)
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body.replace(b"data: END_OF_LOG\n\n", b":\n\n" * 200))  # beyond the client's buffer
            self.wfile.flush()
            self.close_connection = True
            time.sleep(kaggle.stream_seconds)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with kaggle.lock:
                kaggle.seen.append(("PUT", {}))
                token = self.path.split("/upload/")[-1]
                if self.spoiled("PUT", lambda: kaggle.take_upload(token, content)):
                    return
                status = kaggle.take_upload(token, content)
            self.reply(status, b"")

        def do_CONNECT(self) -> None:
            kaggle.seen.append(("CONNECT " + self.path, {}))
            self.reply(403, b"")

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
