"""Serve a local web page that classifies images, with the same predictions as `claris classify`.

Uploads are processed in memory, and never saved or logged. One thread runs the networks, one image at a time: images of
several clients are classified in turn. The computation stops when the client disconnects.

The script of the page sends the form to `/progress`, and shows the progress while the response arrives. Without
scripts, the form goes to `/`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import resources

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from claris_kaggle.core.errors import ClarisError, OversizeError, UsageError
from claris_kaggle.data.arrays import Pixels
from claris_kaggle.data.synthetic import draw_example
from claris_kaggle.inference.fold_models import FoldModels
from claris_kaggle.serving.classify import Classification, ClassifyJob, _count_windows, classify_image
from claris_kaggle.serving.http import (
    _FIELD,
    _MAX_FILES,
    _Guard,
    _security_headers,
    bracketed,
    fail,
    is_loopback,
    read_uploads,
    refuse,
)
from claris_kaggle.serving.images import _largest_file, decode_image
from claris_kaggle.serving.page import _make_downloads, _render_page, all_as_json, render_section
from claris_kaggle.serving.progress import _ImageProgress, _ProgressApp, _Report

_SERVE_TEMPLATE, _SERVE_SCRIPT = "serve.html.jinja", "serve.js"
# The most simultaneous connections, far more than a page needs. Each may hold one image in memory.
_CONNECTIONS = 32
# How often to check whether the client is still connected, and how long a shutdown waits for requests in progress.
_POLL_SECONDS, _SHUTDOWN_SECONDS = 0.25, 2
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ImageResult = Mapping[str, object]  # values of the page, or JSON
_FormatResult = Callable[[Classification], _ImageResult]


class _UploadHandler:
    """Request handlers of the page and the JSON API.

    Args:
        trained: the networks.
        job: views, threshold, stride, and the size limit of images.
    """

    def __init__(self, trained: FoldModels, job: ClassifyJob) -> None:
        self.trained, self.job, self.script = trained, job, _read_script()
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="networks")

    async def page(self, request: Request) -> Response:
        """Return the page with the form, and after an upload with the result."""
        if request.method != "POST":
            return HTMLResponse(self.render(request, [], []))
        status, page = await self.page_of_uploads(request, _report_nothing)
        return HTMLResponse(page, status)

    async def page_of_uploads(self, request: Request, report: _Report) -> tuple[int, str]:
        """Return the HTTP status and the page with the results of a request. Arguments as in `classify_uploads`."""
        status, images, messages = await self.classify_uploads(request, self.format_section, report)
        return status, self.render(request, images, messages)

    async def example(self, request: Request) -> Response:
        """Return the page with the results for two synthetic patches."""
        tasks = [partial(self.classify_pixels, *example, self.format_section) for example in _draw_examples().items()]
        images = [await self.run_in_worker(request, task, _ImageProgress(), _report_nothing) for task in tasks]
        return HTMLResponse(self.render(request, images, [], example=True))

    async def api(self, request: Request) -> Response:
        """Return the result as JSON, in the format of `claris classify --json`."""
        status, images, messages = await self.classify_uploads(request, Classification.to_json, _report_nothing)
        return JSONResponse(all_as_json(self.trained, self.job.views, images, messages), status)

    def render(
        self, request: Request, images: list[_ImageResult], messages: list[str], *, example: bool = False
    ) -> str:
        """Return the page with results or error messages."""
        size = self.job.max_pixels
        limits = {"max_pixels": size, "max_bytes": _largest_file(size), "max_files": _MAX_FILES}
        values = {
            "script": self.script,
            "field": _FIELD,
            "address": str(request.base_url),
            "example": example,
            "downloads": _make_downloads(images, messages, self.trained, self.job.views) if images else {},
            **limits,
        }
        return _render_page(images, messages, self.trained, _SERVE_TEMPLATE, **values)

    def format_section(self, classification: Classification) -> _ImageResult:
        """Format a classification as a section of the page."""
        return render_section(classification, self.trained.config.crop)

    async def classify_uploads(
        self, request: Request, format_result: _FormatResult, report: _Report
    ) -> tuple[int, list[_ImageResult], list[str]]:
        """Classify the uploads of a request.

        Args:
            request: a POST request with a form.
            format_result: formats a classification.
            report: called with the progress several times a second.
        Returns:
            The HTTP status, the formatted classifications, and the error messages of the other images. The status is
            200 if at least one image was classified.
        Raises:
            ClientDisconnect: the client has disconnected.
        """
        try:
            uploads = await read_uploads(request, self.job.max_pixels)
        except ClarisError as error:
            return _status_of(error), [], [str(error)]
        images: list[_ImageResult] = []
        errors: list[ClarisError] = []
        for number, (name, content) in enumerate(uploads, 1):
            task, progress = (
                partial(self.classify_upload, name, content, format_result),
                _ImageProgress(number, len(uploads)),
            )
            try:
                images.append(await self.run_in_worker(request, task, progress, report))
            except ClarisError as error:
                errors.append(error)
        return 200 if images else _status_of(errors[0]), images, [str(error) for error in errors]

    async def run_in_worker(
        self,
        request: Request,
        task: Callable[[_ImageProgress], _ImageResult],
        progress: _ImageProgress,
        report: _Report,
    ) -> _ImageResult:
        """Run `task` in the thread of the networks and return its result.

        Raises:
            ClientDisconnect: the client has disconnected. The computation is then cancelled.
        """
        future = asyncio.get_running_loop().run_in_executor(self.worker, task, progress)
        try:
            while not (await asyncio.wait({future}, timeout=_POLL_SECONDS))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
                await report(progress)
            return future.result()
        finally:
            progress.cancel()
            future.cancel()

    def classify_upload(
        self, name: str, content: bytes, format_result: _FormatResult, progress: _ImageProgress
    ) -> _ImageResult:
        """Classify an upload and format the result. Runs in the thread of the networks.

        Raises:
            Stopped: the computation was cancelled.
            ClarisError: the image cannot be classified.
        """
        return self.classify_pixels(name, decode_image(content, name, self.job.max_pixels), format_result, progress)

    def classify_pixels(
        self, name: str, pixels: Pixels, format_result: _FormatResult, progress: _ImageProgress
    ) -> _ImageResult:
        """Classify an image, uint8 [H, W, 3], and format the result; as `classify_upload`."""
        progress.start(_count_windows(pixels, self.job.stride))
        return format_result(classify_image(self.trained, pixels, name, self.job, on_batch=progress.advance))


async def _report_nothing(progress: _ImageProgress) -> None:
    """Report no progress, to clients that receive the result only."""


def _draw_examples() -> dict[str, Pixels]:
    """Return a synthetic patch of each class by its name."""
    return {f"synthetic {name} patch": draw_example(label) for label, name in enumerate(("benign", "malignant"))}


def _status_of(error: ClarisError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, OversizeError):
        return 413
    return 400 if isinstance(error, UsageError) else 422


def _make_app(handler: _UploadHandler, host: str, *, debug: bool = False) -> ASGIApp:
    """Return the ASGI application.

    Args:
        handler: the request handlers.
        host: the host that the server listens on. On loopback, requests for any other host name are rejected, which
            prevents DNS rebinding.
        debug: print the traceback of unexpected errors.
    """
    routes = [
        Route("/", handler.page, methods=["GET", "POST"]),
        Route("/example", handler.example),
        Route("/classify", handler.api, methods=["POST"]),
        Route("/progress", _ProgressApp(handler.page_of_uploads), methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse, Exception: fail})
    names = [*_LOOPBACK, bracketed(host)] if is_loopback(host) else []
    return _Guard(app, names, _security_headers(handler.script), debug=debug)


def _read_script() -> str:
    """Return the JavaScript of the page."""
    return resources.files("claris_kaggle.reporting.templates").joinpath(_SERVE_SCRIPT).read_text("utf-8")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UsageError: `host` is not a valid address.
        ClarisError: the address is not of this machine, or the port is in use or not permitted.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise UsageError(
            f"--host is {host!r}, which is not an address", "use 127.0.0.1 for this machine only"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ClarisError(f"port {port} of {host}: {reason}", "expected a free port", "Give another --port") from error


def serve(trained: FoldModels, job: ClassifyJob, listener: socket.socket, host: str, *, debug: bool = False) -> None:
    """Serve until a KeyboardInterrupt. Requests in progress then have two seconds to finish.

    Args:
        trained: the networks.
        job: views, threshold, stride, and the size limit of images.
        listener: a socket from `listen`. It is closed at the end.
        host: the host passed to `listen`.
        debug: print the traceback of unexpected errors.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs details of uploads
    handler = _UploadHandler(trained, job)
    config = uvicorn.Config(
        _make_app(handler, host, debug=debug),
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
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        handler.worker.shutdown(cancel_futures=True)
