"""Requests to the served page: who is answered, with which headers, and the file of a form."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import time
import traceback
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from urllib.parse import quote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import PatchError, UsageError
from claris_kaggle.serving.images import _largest_file, _too_large

_FIELD = "image"
_EXPECTED_FORM = f"a form (multipart/form-data) with one file, named {_FIELD}, is needed"
# What a form adds to its file, generously.
_FORM_BYTES = 64 * 1024
_LONGEST_NAME = 100

_LOGGED_PATH_LENGTH = 100


class _Guard:
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
            await (self.app if known else _FOREIGN_HOST_RESPONSE)(scope, receive, send_on)
        except Exception as error:  # answered by `fail` already
            status += f" {type(error).__name__}"
            if self.debug:
                traceback.print_exc()
        finally:
            path, seconds = quote(scope["path"])[:_LOGGED_PATH_LENGTH], time.monotonic() - begin
            log_info(f"{time.strftime('%H:%M:%S')} {scope['method']} {path} {status} {seconds:.2f} s")


_FOREIGN_HOST_RESPONSE = PlainTextResponse("This page answers to localhost alone.\n", 421)
_STATUS_TEXTS = {
    404: "There is no such page here: / is one, and programs send images to /classify.",
    405: "Not in this way.",
}


async def refuse(request: Request, error: Exception) -> Response:
    """A request that has no page, in a line of text."""
    assert isinstance(error, HTTPException)
    text = _STATUS_TEXTS.get(error.status_code, error.detail)
    return PlainTextResponse(f"{text}\n", error.status_code, error.headers)


async def fail(request: Request, error: Exception) -> Response:
    """A mistake of ours, or one that no message foresees."""
    return PlainTextResponse(
        f"The computation failed ({type(error).__name__}); claris serve --debug shows where.\n", 500
    )


def _security_headers(script: str) -> dict[str, str]:
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


class _MemoryParser(MultiPartParser):
    """A parser whose files never go to the disk, whatever their size; the size is limited before."""

    spool_max_size = 0


async def read_upload(request: Request, max_pixels: int) -> tuple[str, bytes]:
    """The plain name and the bytes of the file that was sent.

    Args:
        max_pixels: of the largest image, from which the limit on bytes follows.
    Raises:
        UsageError: no form, or one with anything else in it.
        OversizeError: more bytes than the largest image needs; they are not kept.
        PatchError: there is no file, or nothing in it.
    """
    if parse_options_header(request.headers.get("content-type"))[0] != b"multipart/form-data":
        raise UsageError("no form was sent", _EXPECTED_FORM)
    try:
        async with aclosing(limited(request, max_pixels)) as stream:
            form = await _MemoryParser(request.headers, stream, max_files=1, max_fields=0).parse()
    except (MultiPartException, FormParserError) as error:
        why = getattr(error, "message", str(error)).rstrip(".")
        raise UsageError(f"the form cannot be taken ({why})", _EXPECTED_FORM) from error
    upload = form.get(_FIELD)
    name, content = (upload.filename, await upload.read()) if isinstance(upload, UploadFile) else ("", b"")
    await form.close()
    if not content:
        raise PatchError("no file was sent, or an empty one", _EXPECTED_FORM, "Choose an image")
    return _clean_name(name or ""), content


async def limited(request: Request, max_pixels: int) -> AsyncGenerator[bytes, None]:
    """The body in parts, as long as it can be that of the largest image.

    Raises:
        OversizeError: it says that it is longer, or turns out to be.
    """
    limit = _largest_file(max_pixels) + _FORM_BYTES
    said = int(request.headers.get("content-length", 0))
    if said > limit:
        raise _too_large("the upload", f"{said:,} bytes", max_pixels)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large("the upload", f"more than {limit:,} bytes", max_pixels)
        yield part


def _clean_name(name: str) -> str:
    """The last part of a file's name, without what cannot be printed; `image` if nothing is left.

    >>> _clean_name("../../etc/passwd"), _clean_name("C:\\\\scans\\\\a\\x00b.png"), _clean_name("../")
    ('passwd', 'ab.png', 'image')
    """
    last = re.split(r"[/\\]", name)[-1]
    return "".join(character for character in last if character.isprintable())[-_LONGEST_NAME:].strip() or "image"
