"""Handle requests to the web page: accepted hosts, response headers and uploaded files."""

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
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import PatchError, UsageError, name_few
from claris_kaggle.serving.images import _largest_file, _too_large

_FIELD = "image"
# The most files in a form. Their total size has the limit of one large image.
_MAX_FILES = 50
_EXPECTED_FORM = f"expected a form (multipart/form-data) with 1 to {_MAX_FILES} files in the field {_FIELD}"
# A generous limit for the bytes that the form adds to its files.
_FORM_BYTES = 64 * 1024
_MAX_NAME_LENGTH = 100

_LOGGED_PATH_LENGTH = 100
_CLIENT_CLOSED = 499  # logged when the client has disconnected


class _Guard:
    """ASGI middleware that checks the Host header, adds security headers and logs one line per request.

    Args:
        app: the application.
        names: accepted host names; an empty list accepts all.
        headers: headers added to each response.
        debug: print the traceback of unexpected errors.
    """

    def __init__(self, app: ASGIApp, names: list[str], headers: Mapping[str, str], *, debug: bool) -> None:
        self.app, self.headers, self.debug = app, headers, debug
        allowed = "|".join(map(re.escape, names))
        self.known = re.compile(rf"(?:{allowed})(?::\d+)?" if names else ".*", re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
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
        except ClientDisconnect:
            status = str(_CLIENT_CLOSED)
        except Exception as error:  # `fail` has sent the response already
            status += f" {type(error).__name__}"
            if self.debug:
                traceback.print_exc()
        finally:
            path, seconds = quote(scope["path"])[:_LOGGED_PATH_LENGTH], time.monotonic() - begin
            log_info(f"{time.strftime('%H:%M:%S')} {scope['method']} {path} {status} {seconds:.2f} s")


_FOREIGN_HOST_RESPONSE = PlainTextResponse("This page is only available on localhost.\n", 421)
_STATUS_TEXTS = {
    404: "Page not found. Open /, or POST images to /classify.",
    405: "Method not allowed.",
}


async def refuse(request: Request, error: Exception) -> Response:
    """Return an HTTP error as one line of text."""
    assert isinstance(error, HTTPException)
    text = _STATUS_TEXTS.get(error.status_code, error.detail)
    return PlainTextResponse(f"{text}\n", error.status_code, error.headers)


async def fail(request: Request, error: Exception) -> Response:
    """Return the response to an unexpected error."""
    return PlainTextResponse(f"{_describe_failure(error)}\n", 500)


def _describe_failure(error: Exception) -> str:
    """Return an unexpected error as one line of text, without its message."""
    return f"The computation failed ({type(error).__name__}); claris serve --debug shows where."


def _security_headers(script: str) -> dict[str, str]:
    """Return headers that restrict the page to its own script, embedded images, and requests to its own origin."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = "form-action 'self'; connect-src 'self'"
    allowed = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; {own}"
    return {
        "Content-Security-Policy": f"default-src 'none'; {allowed}; base-uri 'none'; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def is_loopback(host: str) -> bool:
    """Return True if `host` is a loopback address, which other machines cannot reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """Return the host as written in a URL, with brackets around an IPv6 address.

    >>> bracketed("::1"), bracketed("127.0.0.1")
    ('[::1]', '127.0.0.1')
    """
    return f"[{host}]" if ":" in host else host


class _MemoryParser(MultiPartParser):
    """A form parser that keeps files in memory. `_limit_body` enforces the size limit before it."""

    spool_max_size = 0


async def read_uploads(request: Request, max_pixels: int) -> list[tuple[str, bytes]]:
    """Return the cleaned file name and the bytes of each uploaded file.

    Args:
        request: a POST request.
        max_pixels: the largest allowed width x height of an image. The limit in bytes of all files together follows
            from it.
    Raises:
        UsageError: the request has no form, or the form has other fields or other content.
        OversizeError: the upload has more bytes than the largest allowed image. They are discarded.
        PatchError: there is no file, or one of them is empty.
    """
    if parse_options_header(request.headers.get("content-type"))[0] != b"multipart/form-data":
        raise UsageError("the request has no form", _EXPECTED_FORM)
    try:
        async with aclosing(_limit_body(request, max_pixels)) as stream:
            form = await _MemoryParser(request.headers, stream, max_files=_MAX_FILES, max_fields=0).parse()
    except (MultiPartException, FormParserError) as error:
        why = getattr(error, "message", str(error)).rstrip(".")
        raise UsageError(f"the form is invalid ({why})", _EXPECTED_FORM) from error
    if others := sorted(set(form) - {_FIELD}):
        await form.close()
        found = name_few(repr(name[:_MAX_NAME_LENGTH]) for name in others)
        raise UsageError(f"unknown form field: {found}", _EXPECTED_FORM, f"Name the field {_FIELD}")
    files = [one for one in form.getlist(_FIELD) if isinstance(one, UploadFile)]
    uploads = [(_clean_name(one.filename or ""), await one.read()) for one in files]
    await form.close()
    if not uploads or not all(content for _, content in uploads):
        raise PatchError("no file was sent, or an empty one", _EXPECTED_FORM, "Choose an image")
    return uploads


async def _limit_body(request: Request, max_pixels: int) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request in parts, up to the size of a form with the largest allowed image.

    Raises:
        OversizeError: the Content-Length header or the body exceeds the limit.
    """
    limit = _largest_file(max_pixels) + _FORM_BYTES
    stated = int(request.headers.get("content-length", 0))
    if stated > limit:
        raise _too_large("the upload", f"{stated:,} bytes", max_pixels)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large("the upload", f"more than {limit:,} bytes", max_pixels)
        yield part


def _clean_name(name: str) -> str:
    """Return the last component of a file name without unprintable characters, or `image` if nothing is left.

    >>> _clean_name("../../etc/passwd"), _clean_name("C:\\\\scans\\\\a\\x00b.png"), _clean_name("../")
    ('passwd', 'ab.png', 'image')
    """
    last = re.split(r"[/\\]", name)[-1]
    return "".join(character for character in last if character.isprintable())[-_MAX_NAME_LENGTH:].strip() or "image"
