"""Calls of Kaggle's client about the account, a running session's log and a kernel's end; `kaggle_client` runs them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

# A stream repeats the whole log and then stays open: it is read until nothing comes for a while.
_LOG_LINES, _QUIET_SECONDS = 400, 2.0


def _call_quota(api: Any) -> dict[str, Any]:
    """Return the GPU seconds of this week, and when the next week begins (ISO, UTC) where Kaggle says so."""
    answer = api.quota_view()
    gpu, renews = answer.gpu_quota, answer.quota_refresh_time
    return {"gpu": None if gpu is None else _quota_values(gpu), "renews": renews.isoformat() if renews else ""}


def _quota_values(gpu: Any) -> dict[str, Any]:
    """Return a quota as plain values; a time of zero is left out of Kaggle's answer."""
    times = {"used": gpu.time_used, "reserved": gpu.time_reserved, "allowed": gpu.total_time_allowed}
    seconds = {name: time.total_seconds() if time else 0.0 for name, time in times.items()}
    return {**seconds, "ever_used": bool(gpu.has_ever_run)}


def _call_competition(api: Any, competition: str) -> dict[str, Any]:
    """Return what Kaggle says of the account in the competition; `found` is False where it names none."""
    for one in _find_competition(api, competition):
        if one.ref.rstrip("/").split("/")[-1] == competition:
            return {
                "found": True,
                "entered": bool(one.user_has_entered),
                "closed": bool(one.submissions_disabled),
                "only_kernels": bool(one.is_kernels_submissions_only),
                "daily": one.max_daily_submissions or 0,
            }
    return {"found": False}


def _find_competition(api: Any, name: str) -> list[Any]:
    """Return the competition by its name; where Kaggle refuses that, those that the account has entered."""
    import requests
    from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest

    # Typed: `competitions_list` leaves out what has ended, unless the account has entered it.
    request = ApiGetCompetitionRequest()
    request.competition_name = name
    try:
        with api.build_kaggle_client() as client:
            return [client.competitions.competition_api_client.get_competition(request)]
    except requests.HTTPError as error:
        if error.response is None or error.response.status_code not in (403, 404):
            raise
    return list(api.competitions_list(group="entered", search=name).competitions or [])


def _call_running_log(api: Any, ref: str, version: int, seconds: float) -> dict[str, Any]:
    """Return the last lines that this version's session has printed.

    Args:
        api: the client.
        ref: owner/slug.
        version: the number of the version.
        seconds: how long the stream is read at most.
    """
    events: deque[dict[str, str]] = deque(maxlen=_LOG_LINES)
    newest = [time.monotonic()]
    begun, ended = threading.Event(), threading.Event()

    def read() -> None:
        # A session without a stream answers with an error; the saved log below is asked for instead.
        with contextlib.suppress(Exception):
            for event in api.kernels_logs_stream(f"{ref}/{version}"):
                events.append(event)
                newest[0] = time.monotonic()
                begun.set()
        ended.set()

    # The client reads without a timeout, so the reader is left behind when it is no longer waited for.
    threading.Thread(target=read, daemon=True).start()
    end = time.monotonic() + seconds
    while not ended.is_set() and time.monotonic() < end:
        if begun.is_set() and time.monotonic() - newest[0] > _QUIET_SECONDS:
            break
        ended.wait(0.1)
    log = "".join(line if line.endswith("\n") else line + "\n" for line in map(_event_text, tuple(events)) if line)
    return {"log": log or api.kernels_logs(f"{ref}/{version}")}


def _event_text(event: dict[str, str]) -> str:
    """Return what an event of the stream carries."""
    return str(event.get("data") or "")


def _call_delete(api: Any, ref: str) -> dict[str, Any]:
    """Delete a kernel with all its versions; `kernels_delete` would drop the answer's error message."""
    from kagglesdk.kernels.types.kernels_api_service import ApiDeleteKernelRequest

    request = ApiDeleteKernelRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.delete_kernel(request)
    return {"error": answer.error_message or ""}


def _call_status_of_label(api: Any, ref: str, label: str) -> dict[str, Any]:
    """Ask for the status under any version label, also one that Kaggle refuses: how it refuses is the answer."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest

    request = ApiGetKernelSessionStatusRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    request.version_label = label
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel_session_status(request)
    return {"status": answer.status.name}


_TYPED_METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "quota": _call_quota,
    "competition": _call_competition,
    "running_log": _call_running_log,
    "delete": _call_delete,
    "status_of_label": _call_status_of_label,
}
