"""`claris classify` as a page of this machine: drop an image, see the answer with its evidence.

Nothing of an upload is written, kept or logged. The networks answer in one thread, one image after the other, and
who has left is not computed for any longer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from claris_kaggle.core.errors import ClarisError, OversizeError, Stopped, UsageError
from claris_kaggle.inference.fold_models import FoldModels
from claris_kaggle.serving.classify import Classification, ClassifyJob, classify_image
from claris_kaggle.serving.http import (
    _FIELD,
    _Guard,
    _security_headers,
    bracketed,
    fail,
    is_loopback,
    read_upload,
    refuse,
)
from claris_kaggle.serving.images import _largest_file, decode_image
from claris_kaggle.serving.page import _render_page, all_as_json, render_section

_SERVE_TEMPLATE, _SERVE_SCRIPT = "serve.html.jinja", "serve.js"
# Far more than a page needs; each may hold one image in memory.
_CONNECTIONS = 32
# How often it is looked whether who asked is still there, and how long a stop waits for answers.
_LOOK_SECONDS, _LAST_SECONDS = 0.25, 2
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_CLIENT_CLOSED = 499
_FormatAnswer = Callable[[Classification], dict[str, Any]]


class _UploadHandler:
    """Where images are handed in and answers are given out.

    Args:
        trained: the networks.
        job: how they are asked, and the largest image.
    """

    def __init__(self, trained: FoldModels, job: ClassifyJob) -> None:
        self.trained, self.job, self.script = trained, job, _read_script()
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="networks")

    async def page(self, request: Request) -> Response:
        """The page: with the form alone, or with the answer about the image that was sent."""
        if request.method != "POST":
            return self.respond(200, [], [])
        return self.respond(*await self.ask(request, partial(render_section, crop=self.trained.config.crop)))

    async def api(self, request: Request) -> Response:
        """The same as one object for a program, as `claris classify --json` prints it."""
        status, images, faults = await self.ask(request, Classification.to_json)
        return JSONResponse(all_as_json(self.trained, self.job.views, images, faults), status)

    def respond(self, status: int, images: list[dict[str, Any]], faults: list[str]) -> Response:
        """The page with answers or faults on it."""
        limits = {"max_pixels": self.job.max_pixels, "max_bytes": _largest_file(self.job.max_pixels)}
        more = {"script": self.script, "field": _FIELD, **limits}
        return HTMLResponse(_render_page(images, faults, self.trained, _SERVE_TEMPLATE, **more), status)

    async def ask(self, request: Request, tell: _FormatAnswer) -> tuple[int, list[dict[str, Any]], list[str]]:
        """The status, and what `tell` makes of the answer, or what is wrong with the upload."""
        try:
            name, content = await read_upload(request, self.job.max_pixels)
            return 200, [await self.wait(request, partial(self.classify_upload, name, content, tell))], []
        except ClarisError as error:
            return _status_of(error), [], [str(error)]
        except ClientDisconnect as error:
            raise HTTPException(_CLIENT_CLOSED, "Nobody waits.") from error

    async def wait(self, request: Request, work: Callable[[threading.Event], dict[str, Any]]) -> dict[str, Any]:
        """What `work` returns once it is its turn; given up when nobody waits for it any longer."""
        gone = threading.Event()
        turn = asyncio.get_running_loop().run_in_executor(self.worker, work, gone)
        try:
            while not (await asyncio.wait({turn}, timeout=_LOOK_SECONDS))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
            return turn.result()
        finally:
            gone.set()
            turn.cancel()

    def classify_upload(self, name: str, content: bytes, tell: _FormatAnswer, gone: threading.Event) -> dict[str, Any]:
        """Classify an upload, in the networks' thread."""

        def after(windows: int) -> None:
            if gone.is_set():
                raise Stopped("nobody waits for the answer")

        pixels = decode_image(content, name, self.job.max_pixels)
        return tell(classify_image(self.trained, pixels, name, self.job, after=after))


def _status_of(error: ClarisError) -> int:
    """The HTTP status of a refusal."""
    if isinstance(error, OversizeError):
        return 413
    return 400 if isinstance(error, UsageError) else 422


def _make_app(desk: _UploadHandler, host: str, *, debug: bool = False) -> ASGIApp:
    """The page as an ASGI application.

    Args:
        host: what is listened on; on loopback the page answers under loopback's own names alone, so that no page of
            elsewhere reaches it under a name that was made to point here.
        debug: whether to show the traceback of what no message foresees.
    """
    routes = [Route("/", desk.page, methods=["GET", "POST"]), Route("/classify", desk.api, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse, Exception: fail})
    names = [*_LOOPBACK, bracketed(host)] if is_loopback(host) else []
    return _Guard(app, names, _security_headers(desk.script), debug=debug)


def _read_script() -> str:
    """The page's own script."""
    return resources.files("claris_kaggle.reporting.templates").joinpath(_SERVE_SCRIPT).read_text("utf-8")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: there is no such host on this machine.
        ClarisError: the port is taken, or not for this user.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UsageError(f"--host is {host!r}, which is no address", "127.0.0.1 is this machine alone") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ClarisError(
            f"port {port} of {host}: {why}", "a free one is needed", "Name another with --port"
        ) from error


def serve(trained: FoldModels, job: ClassifyJob, listener: socket.socket, host: str, *, debug: bool = False) -> None:
    """Answer until a KeyboardInterrupt; what is under way then has two seconds to end.

    Args:
        listener: of `listen`; it is closed at the end.
        host: the name that it was made of.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it remarks on what is sent
    desk = _UploadHandler(trained, job)
    config = uvicorn.Config(
        _make_app(desk, host, debug=debug),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        desk.worker.shutdown(cancel_futures=True)
