"""Record the client's requests and Kaggle's responses for a bug report, without headers, tokens or names.

Values are replaced by placeholders ("", "<text>", 0), except the fields in `_RECORDED_FIELDS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

_WIRE_LOG_VARIABLE = "CLARIS_KAGGLE_WIRE_LOG"
_USER, _TEXT_PLACEHOLDER = "USER", "<text>"
# Fields that show how Kaggle answers. The account's name is the only personal data in them, and it is replaced.
_RECORDED_FIELDS = frozenset(
    (
        "status", "code", "message", "error", "errorMessage", "failureMessage", "ref", "url", "slug", "userName",
        "kernelSlug", "versionLabel", "versionNumber", "currentVersionNumber", "fileName", "nextPageToken",
        "pageSize", "language", "kernelType", "isPrivate", "enableGpu", "enableTpu", "enableInternet",
        "machineShape", "sessionTimeoutSeconds", "datasetDataSources", "competitionDataSources",
        "kernelDataSources", "modelDataSources", "invalidTags", "invalidDatasetSources",
        "invalidCompetitionSources", "invalidKernelSources", "invalidModelSources", "log", "newTitle",
    )
)  # fmt: skip
_MAX_TEXT_LENGTH = 4000
# Anyone with a signed URL can open its file, so only its host is kept.
_ADDRESS = re.compile(r"https?://[^\s\"'<>]+")
_OWN_HOST = re.compile(r"(^|\.)kaggle\.com$|^localhost$|^127\.0\.0\.1$")
_VERSION_QUERY = re.compile(r"versionLabel=v\d+")
_PAGE = re.compile(r"^/code/[\w-]+/[\w-]+/?$")


@contextmanager
def _recording(path: Path) -> Iterator[None]:
    """Record the requests of client processes that start within this context in the file."""
    previous = os.environ.get(_WIRE_LOG_VARIABLE)
    os.environ[_WIRE_LOG_VARIABLE] = str(path)
    try:
        yield
    finally:
        if previous is None:
            del os.environ[_WIRE_LOG_VARIABLE]
        else:
            os.environ[_WIRE_LOG_VARIABLE] = previous


def _record_requests() -> None:
    """Record the requests that `requests` sends in this process, if a parent process enabled it."""
    path = os.environ.get(_WIRE_LOG_VARIABLE)
    if not path:
        return
    import requests

    send = requests.Session.send

    def recorded(session: Session, request: PreparedRequest, **settings: object) -> Response:
        response = send(session, request, **settings)
        line = json.dumps(_describe_exchange(request, response, streamed=bool(settings.get("stream"))))
        # The call continues if its record cannot be written.
        with contextlib.suppress(OSError), Path(path).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        return response

    requests.Session.send = recorded  # type: ignore[method-assign, assignment]


def _describe_exchange(request: PreparedRequest, response: Response, *, streamed: bool) -> dict[str, object]:
    """Return a request and its response, without headers.

    Args:
        request: as `requests` prepared it.
        response: its response.
        streamed: True if the caller reads the body, which is then not recorded.
    """
    kind = response.headers.get("Content-Type", "").split(";")[0]
    answer = None if streamed else _read_body(response.content)
    return {
        "method": request.method,
        "route": _describe_route(request.url or ""),
        "request": _replace_values(_read_body(request.body)),
        "status": response.status_code,
        "type": kind,
        "answer": _replace_values(answer),
    }


def _describe_route(address: str) -> str:
    """Return the route of a Kaggle URL. Of any other URL only the host, because a signed URL opens a file.

    >>> _describe_route("https://api.kaggle.com/v1/kernels.KernelsApiService/GetKernel")
    'kernels.KernelsApiService/GetKernel'
    >>> _describe_route("https://storage.googleapis.com/v1/b?signature=1")
    'storage.googleapis.com'
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if "/v1/" not in parts.path or not _OWN_HOST.search(host):
        return host
    return parts.path.split("/v1/", 1)[1] + (f"?{parts.query}" if _VERSION_QUERY.fullmatch(parts.query) else "")


def _read_body(body: object) -> object:
    """Return the JSON of a body. Returns only the length of other text, and an empty dict for a stream."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body if isinstance(body, str) else ""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"not JSON": len(text)}


def _replace_values(value: object, name: str = "") -> object:
    """Return the value with every field replaced by a placeholder, except those in `_RECORDED_FIELDS`."""
    if isinstance(value, dict):
        return {key: _replace_values(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_replace_values(one, name) for one in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if name in _RECORDED_FIELDS else 0
    if name not in _RECORDED_FIELDS:
        return _TEXT_PLACEHOLDER if value else ""
    return _ADDRESS.sub(lambda found: _shorten_address(found.group()), str(value))[:_MAX_TEXT_LENGTH]


def _shorten_address(address: str) -> str:
    """Return the URL of a kernel's page unchanged; of any other URL, only scheme and host."""
    parts = urlsplit(address)
    path = parts.path if _PAGE.match(parts.path) and not parts.query else "/..."
    return f"{parts.scheme}://{parts.netloc}{path}"


def _read_exchanges(path: Path) -> list[object]:
    """Return the recorded exchanges, in order."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _hide_user(value: object, user: str) -> object:
    """Return the value with the user's name replaced wherever it is a whole word.

    >>> _hide_user({"ref": "/code/Anna/x", "message": "Annals"}, "anna")
    {'ref': '/code/USER/x', 'message': 'Annals'}
    """
    if isinstance(value, dict):
        return {key: _hide_user(one, user) for key, one in value.items()}
    if isinstance(value, list):
        return [_hide_user(one, user) for one in value]
    if not isinstance(value, str) or not user:
        return value
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(user)}(?![A-Za-z0-9])", _USER, value, flags=re.IGNORECASE)
