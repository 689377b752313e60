"""Report the progress of a classification to the web page, as lines of JSON in the response.

The thread of the networks counts the finished windows. The server reads the count, and tells the thread to stop when
the client has disconnected.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from claris_kaggle.core.console import format_duration
from claris_kaggle.core.errors import Stopped
from claris_kaggle.serving.http import _describe_failure


class _ImageProgress:
    """The progress of one image of a request.

    Args:
        number: place of the image among the images of the request, from 1.
        images: number of images of the request.
    """

    def __init__(self, number: int = 1, images: int = 1) -> None:
        self.number, self.images = number, images
        self.done = self.total = 0
        self.begin = 0.0
        self._cancelled = threading.Event()

    def start(self, windows: int) -> None:
        """Start the computation of an image of `windows` windows."""
        self.begin, self.total = time.monotonic(), windows

    def advance(self, windows: int) -> None:
        """Count finished windows.

        Raises:
            Stopped: the computation was cancelled.
        """
        self.done += windows
        if self._cancelled.is_set():
            raise Stopped("the client has disconnected")

    def cancel(self) -> None:
        """Stop the computation after the current batch of windows."""
        self._cancelled.set()

    def to_json(self) -> dict[str, object]:
        """Return the finished share of the request, 0 to 1, and the progress as text."""
        of_image = _describe_windows(self.done, self.total, time.monotonic() - self.begin)
        text = f"image {self.number} of {self.images}: {of_image}" if self.images > 1 else of_image
        return {"share": round((self.number - 1 + self.done / max(self.total, 1)) / self.images, 4), "text": text}


_Report = Callable[[_ImageProgress], Awaitable[None]]
_RenderPage = Callable[[Request, _Report], Awaitable[tuple[int, str]]]


def _describe_windows(done: int, total: int, seconds: float) -> str:
    """Return the progress of an image as text.

    >>> _describe_windows(0, 0, 0.0), _describe_windows(0, 1, 0.1)
    ('waiting', 'classifying')
    >>> _describe_windows(0, 2025, 0.1), _describe_windows(675, 2025, 30.0)
    ('0 of 2,025 windows', '675 of 2,025 windows, about 60 s left')
    """
    if total < 2:
        return "classifying" if total else "waiting"
    left = f", about {format_duration(seconds * (total - done) / done)} left" if done else ""
    return f"{done:,} of {total:,} windows{left}"


class _ProgressApp:
    """ASGI application that writes the progress of a computation and its result, each as one line of JSON.

    A line of progress is `_ImageProgress.to_json`. The last line has the field `page`, or `error` if the computation
    failed.

    Args:
        render: computes the HTTP status and the page of a request. It reports the progress while it computes. The
            status is sent only if there was nothing to report before; otherwise it is 200.
    """

    def __init__(self, render: _RenderPage) -> None:
        self.render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request.

        Raises:
            ClientDisconnect: the client has disconnected.
        """
        lines = _Lines(send)
        try:
            status, page = await self.render(Request(scope, receive), lines.report)
        except ClientDisconnect:
            raise
        except Exception as error:
            if lines.last is not None:
                await lines.write({"error": _describe_failure(error)}, more=False)
            raise
        await lines.write({"page": page}, status, more=False)


class _Lines:
    """The lines of one response. The response starts with the first line."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.last: Mapping[str, object] | None = None

    async def report(self, progress: _ImageProgress) -> None:
        """Write the progress if it has changed."""
        if (line := progress.to_json()) != self.last:
            await self.write(line)

    async def write(self, line: Mapping[str, object], status: int = 200, *, more: bool = True) -> None:
        """Write a line; `more` is False for the last one."""
        if self.last is None:
            headers = [(b"content-type", b"application/x-ndjson")]
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
        self.last = line
        body = json.dumps(line).encode() + b"\n"
        await self.send({"type": "http.response.body", "body": body, "more_body": more})
