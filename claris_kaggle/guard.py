"""Who is answered by the served page, with which headers, and what is logged of it: a line a request."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import time
import traceback
from collections.abc import Mapping
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claris_kaggle.console import say

LONGEST_PATH = 100


class Guard:
    """Knows the names that are answered to, adds the headers that keep the page by itself, logs a line a request."""

    def __init__(self, app: ASGIApp, names: list[str], headers: Mapping[str, str], *, debug: bool) -> None:
        self.app, self.headers, self.debug = app, headers, debug
        self.known = re.compile("(?:" + "|".join(map(re.escape, names)) + r")(?::\d+)?" if names else ".*", re.I)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begin, status = time.monotonic(), "-"

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        known = self.known.fullmatch(Headers(scope=scope).get("host", ""))
        try:
            await (self.app if known else STRANGER)(scope, receive, send_on)
        except Exception as error:  # answered by `fail` already
            status += f" {type(error).__name__}"
            if self.debug:
                traceback.print_exc()
        finally:
            path, seconds = quote(scope["path"])[:LONGEST_PATH], time.monotonic() - begin
            say(f"{time.strftime('%H:%M:%S')} {scope['method']} {path} {status} {seconds:.2f} s")


STRANGER = PlainTextResponse("This page answers to localhost alone.\n", 421)
WORDS = {404: "There is no such page here: / is one, and programs send images to /classify.", 405: "Not in this way."}


async def refuse(request: Request, error: Exception) -> Response:
    """A request that has no page, in a line of text."""
    assert isinstance(error, HTTPException)
    text = WORDS.get(error.status_code, error.detail)
    return PlainTextResponse(f"{text}\n", error.status_code, error.headers)


async def fail(request: Request, error: Exception) -> Response:
    """A mistake of ours, or one that no message foresees."""
    return PlainTextResponse(
        f"The computation failed ({type(error).__name__}); claris serve --debug shows where.\n", 500
    )


def security_headers(script: str) -> dict[str, str]:
    """What a browser may do with the page: show it, run its own script, send its form to where it came from."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'self'"
    return {
        "Content-Security-Policy": f"default-src 'none'; {allowed}; base-uri 'none'; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def is_loopback(host: str) -> bool:
    """Whether no other machine reaches this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """The host as it stands in an address.

    >>> bracketed("::1"), bracketed("127.0.0.1")
    ('[::1]', '127.0.0.1')
    """
    return f"[{host}]" if ":" in host else host
