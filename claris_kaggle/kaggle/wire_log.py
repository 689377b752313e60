"""A record of the requests of Kaggle's client and their answers, fit for a bug report: no headers, tokens or names.

Of each value only the shape is kept (an empty string, 0), but for those whose names are listed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RECORD = "CLARIS_KAGGLE_WIRE_LOG"
USER, TEXT_SHAPE = "USER", "<text>"
# Values that tell how Kaggle answers, and nothing of the account but its name, which is replaced.
KEPT = frozenset(
    (
        "status", "code", "message", "error", "errorMessage", "failureMessage", "ref", "url", "slug", "userName",
        "kernelSlug", "versionLabel", "versionNumber", "currentVersionNumber", "fileName", "nextPageToken",
        "pageSize", "language", "kernelType", "isPrivate", "enableGpu", "enableTpu", "enableInternet",
        "machineShape", "sessionTimeoutSeconds", "datasetDataSources", "competitionDataSources",
        "kernelDataSources", "modelDataSources", "invalidTags", "invalidDatasetSources",
        "invalidCompetitionSources", "invalidKernelSources", "invalidModelSources", "log", "newTitle",
    )
)  # fmt: skip
LONGEST = 4000
# Signed addresses open a file to whoever has them: only their host is kept.
ADDRESS = re.compile(r"https?://[^\s\"'<>]+")
OWN_HOST = re.compile(r"(^|\.)kaggle\.com$|^localhost$|^127\.0\.0\.1$")
VERSION_QUERY = re.compile(r"versionLabel=v\d+")
PAGE = re.compile(r"^/code/[\w-]+/[\w-]+/?$")


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Let the client's processes that are started meanwhile record their requests in the file."""
    before = os.environ.get(RECORD)
    os.environ[RECORD] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[RECORD]
        else:
            os.environ[RECORD] = before


def record_requests() -> None:
    """Record what `requests` sends in this process, if a process above asked for it."""
    path = os.environ.get(RECORD)
    if not path:
        return
    import requests

    send = requests.Session.send

    def recorded(session: Any, request: Any, **settings: Any) -> Any:
        response = send(session, request, **settings)
        line = json.dumps(describe_exchange(request, response, streamed=bool(settings.get("stream"))))
        # A call goes on where its record cannot be written.
        with contextlib.suppress(OSError), Path(path).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        return response

    requests.Session.send = recorded


def describe_exchange(request: Any, response: Any, *, streamed: bool) -> dict[str, Any]:
    """Return a request and its answer without their headers.

    Args:
        request: as `requests` prepared it.
        response: its answer.
        streamed: the body is left to the one who reads it.
    """
    kind = response.headers.get("Content-Type", "").split(";")[0]
    answer = None if streamed else read_body(response.content)
    return {
        "method": request.method,
        "route": route_of(request.url or ""),
        "request": shape_of(read_body(request.body)),
        "status": response.status_code,
        "type": kind,
        "answer": shape_of(answer),
    }


def route_of(address: str) -> str:
    """Return the route of Kaggle's own addresses; of any other, the host alone: a signed address opens a file.

    >>> route_of("https://api.kaggle.com/v1/kernels.KernelsApiService/GetKernel")
    'kernels.KernelsApiService/GetKernel'
    >>> route_of("https://storage.googleapis.com/v1/b?signature=1")
    'storage.googleapis.com'
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if "/v1/" not in parts.path or not OWN_HOST.search(host):
        return host
    return parts.path.split("/v1/", 1)[1] + (f"?{parts.query}" if VERSION_QUERY.fullmatch(parts.query) else "")


def read_body(body: bytes | str | None) -> Any:
    """Return the JSON of a body; of one that is none, its beginning."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body or ""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"not JSON": len(text)}


def shape_of(value: Any, name: str = "") -> Any:
    """Return the value with everything replaced that is not listed as fit to be kept."""
    if isinstance(value, dict):
        return {key: shape_of(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [shape_of(one, name) for one in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if name in KEPT else 0
    if name not in KEPT:
        return TEXT_SHAPE if value else ""
    return ADDRESS.sub(lambda found: shorten_address(found.group()), str(value))[:LONGEST]


def shorten_address(address: str) -> str:
    """Return a kernel's page as it is; of any other address, only scheme and host."""
    parts = urlsplit(address)
    kept = parts.path if PAGE.match(parts.path) and not parts.query else "/..."
    return f"{parts.scheme}://{parts.netloc}{kept}"


def read_record(path: Path) -> list[dict[str, Any]]:
    """Return the exchanges of a record, in their order."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def hide_user(value: Any, user: str) -> Any:
    """Return the value with the user's name replaced wherever it stands as a word.

    >>> hide_user({"ref": "/code/Anna/x", "message": "Annals"}, "anna")
    {'ref': '/code/USER/x', 'message': 'Annals'}
    """
    if isinstance(value, dict):
        return {key: hide_user(one, user) for key, one in value.items()}
    if isinstance(value, list):
        return [hide_user(one, user) for one in value]
    if not isinstance(value, str) or not user:
        return value
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(user)}(?![A-Za-z0-9])", USER, value, flags=re.I)
