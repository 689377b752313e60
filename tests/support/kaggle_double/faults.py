"""Faults of one request, as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A fault of one request, before or after the server acts on it.

    Attributes:
        status: of the answer; 0 answers as if nothing were wrong.
        cut: the connection ends without an answer.
        acted: the request is acted upon first.
        pause: seconds until the answer.
        do: called when the request comes.
        late: acted upon only when so many looks have come since (GetKernel, ListSubmissions), whoever waits for it.
    """

    status: int = 0
    body: bytes = b"{}"
    kind: str = "application/json"
    cut: bool = False
    acted: bool = False
    pause: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    do: Callable[[], None] | None = None
    late: int = 0


def flat_error(code: int, message: str) -> bytes:
    """An error as most of Kaggle's services send it (CLIENT: the SDK looks for `code` and `message`)."""
    return json.dumps({"code": code, "message": message}).encode()


def nested_error(code: int, message: str, status: str) -> bytes:
    """An error as the gateway before them sends it (USERS: seen on push and status)."""
    return json.dumps({"error": {"code": code, "message": message, "status": status}}).encode()


# A later try may do better.
PASSING = {
    "429": Fault(status=429, headers={"Retry_After": "0"}),
    "nested 429": Fault(status=429, body=nested_error(429, "Too many requests", "RESOURCE_EXHAUSTED")),
    "500": Fault(status=500, body=b"<html>oops</html>", kind="text/html"),
    "503": Fault(status=503),
    "nested 503": Fault(status=503, body=nested_error(503, "Try again", "UNAVAILABLE")),
    "nested 503 in a good answer": Fault(status=200, body=nested_error(503, "Try again", "UNAVAILABLE")),
    "cut before": Fault(cut=True),
    "cut after": Fault(cut=True, acted=True),
    "broken JSON": Fault(status=200, body=b"{", acted=True),
    "a page": Fault(status=200, body=b"<html></html>", kind="text/html", acted=True),
    "null": Fault(status=200, body=b"null", acted=True),
}
# It will not, and what is said of it by a push.
FINAL = {
    "401": (Fault(status=401, body=flat_error(401, "Unauthorized")), "kaggle auth login"),
    "nested 401": (Fault(status=401, body=nested_error(401, "No", "UNAUTHENTICATED")), "refused the token (401: No)"),
    "403": (Fault(status=403, body=flat_error(403, "Forbidden")), "kaggle.com/settings"),
    "403 with a page": (Fault(status=403, body=b"<html></html>", kind="text/html"), "an answer of type text/html"),
    "404": (Fault(status=404, body=flat_error(404, "no")), "did not find it"),
    "400": (Fault(status=400, body=flat_error(400, "bad title")), "400 and did not accept the kernel: bad title"),
    "nested 400": (
        Fault(status=400, body=nested_error(400, "bad title", "INVALID_ARGUMENT")),
        "400 and did not accept the kernel: bad title",
    ),
}
