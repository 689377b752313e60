"""The fake server's routes of the account, of a running session's log and of a kernel's end.

Names and types are those of the client's own classes: ApiGetAcceleratorQuotaStatisticsResponse, ApiCompetition,
ApiDeleteKernelRequest; the stream is that of `KaggleApi.kernels_logs_stream`.
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from typing import Any

COMPETITION = "histopathologic-cancer-detection"
STREAM = re.compile(r"/v1/kernels/logs/stream/([\w-]+)/([\w-]+)$")
REFUSED = (403, {"code": 403, "message": "Permission 'kernels.get' was denied"})


class AccountRoutes:
    """What the account is told, and how a running session's log is streamed."""

    kernels: dict[str, list[Any]]

    def __init__(self) -> None:
        # Kaggle leaves a time of zero out of its answer, as it does every default.
        self.gpu: dict[str, Any] | None = {"timeUsed": "3600s", "totalTimeAllowed": "108000s", "hasEverRun": True}
        self.renews = "2026-12-05T00:00:00.000Z"
        self.entered, self.submissions_disabled = True, False
        self.listed = [COMPETITION, "histopathologic-cancer-detection-2"]
        self.undeletable = ""
        # The lines of a running session, which its stream repeats from the beginning.
        self.running_lines: list[str] = []
        # Seconds that a stream stays open after them: it ends with the session, not with its lines.
        self.hold = 30.0
        self.streamed: list[str] = []

    def do_GetAcceleratorQuotaStatistics(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {"quotaRefreshTime": self.renews, **({"gpuQuota": self.gpu} if self.gpu is not None else {})}

    def do_ListCompetitions(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = []
        for number, name in enumerate(self.listed):
            about = {"id": number, "ref": f"https://www.kaggle.com/competitions/{name}", "maxDailySubmissions": 5}
            flags = {"userHasEntered": self.entered, "submissionsDisabled": self.submissions_disabled}
            found.append({**about, **{key: value for key, value in flags.items() if value and name == COMPETITION}})
        return 200, {"competitions": found}

    def do_DeleteKernel(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ref = f"{body['userName']}/{body['kernelSlug']}"
        if not self.kernels.get(ref):
            return REFUSED
        if self.undeletable:
            return 200, {"errorMessage": self.undeletable}
        del self.kernels[ref]
        return 200, {}

    def stream_log(self, handler: Any) -> bool:
        """Answer a request for a session's log, as a stream while it runs; False where it asks for something else."""
        parts = urllib.parse.urlsplit(handler.path)
        found = STREAM.search(parts.path)
        if found is None:
            return False
        label = urllib.parse.parse_qs(parts.query).get("versionLabel", [""])[0]
        self.streamed.append(f"{found[1]}/{found[2]} {label}")
        versions = self.kernels.get(f"{found[1]}/{found[2]}", [])
        number = int(label[1:]) if re.fullmatch(r"v\d+", label) else 0
        if not 0 < number <= len(versions):
            handler.reply(404, b'{"code": 404, "message": "Not found"}')
        elif versions[number - 1].statuses[0] not in ("QUEUED", "RUNNING"):
            handler.reply(200, versions[number - 1].log.encode() or b"[]", "application/json")
        else:
            self.send_events(handler)
        return True

    def send_events(self, handler: Any) -> None:
        """Send the lines as server-sent events, and leave the connection open."""
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for second, line in enumerate(self.running_lines):
            event = json.dumps({"stream_name": "stderr", "time": second, "data": line + "\n"})
            content = f"data: {event}\n\n".encode()
            handler.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        handler.wfile.flush()
        handler.close_connection = True
        end = time.monotonic() + self.hold
        while time.monotonic() < end:
            time.sleep(0.05)
