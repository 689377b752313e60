"""Call Kaggle's client for the account, the log of a running session and deletion; `client_process` runs these."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

# A stream sends the whole log and then stays open: reading stops after _QUIET_SECONDS without a new line.
_LOG_LINES, _QUIET_SECONDS = 400, 2.0


def _call_quota(api: Any) -> dict[str, Any]:
    """Return the GPU seconds of this week, and the start of the next week (ISO 8601, UTC) if Kaggle gives it."""
    answer = api.quota_view()
    gpu, renews = answer.gpu_quota, answer.quota_refresh_time
    return {"gpu": None if gpu is None else _quota_values(gpu), "renews": renews.isoformat() if renews else ""}


def _quota_values(gpu: Any) -> dict[str, Any]:
    """Return a quota as plain values, in seconds. Kaggle omits times of zero from its answer."""
    times = {"used": gpu.time_used, "reserved": gpu.time_reserved, "allowed": gpu.total_time_allowed}
    seconds = {name: time.total_seconds() if time else 0.0 for name, time in times.items()}
    return {**seconds, "ever_used": bool(gpu.has_ever_run)}


def _call_competition(api: Any, competition: str) -> dict[str, Any]:
    """Return the account's state in the competition; `found` is False if Kaggle does not list the competition."""
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
    """Return the competition with this name; if Kaggle refuses, the competitions that the account has entered."""
    import requests
    from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest

    # Typed client: `competitions_list` omits competitions that have ended, unless the account has entered them.
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
    """Return the last lines that the session of this version has printed.

    Args:
        api: the client.
        ref: owner/slug.
        version: the number of the version.
        seconds: longest time for reading the stream.
    """
    events: deque[dict[str, str]] = deque(maxlen=_LOG_LINES)
    newest = [time.monotonic()]
    begun, ended = threading.Event(), threading.Event()

    def read() -> None:
        # A session without a stream answers with an error; the saved log is then requested below.
        with contextlib.suppress(Exception):
            for event in api.kernels_logs_stream(f"{ref}/{version}"):
                events.append(event)
                newest[0] = time.monotonic()
                begun.set()
        ended.set()

    # The client reads without a timeout, so a daemon thread reads, and is abandoned when the time is over.
    threading.Thread(target=read, daemon=True).start()
    end = time.monotonic() + seconds
    while not ended.is_set() and time.monotonic() < end:
        if begun.is_set() and time.monotonic() - newest[0] > _QUIET_SECONDS:
            break
        ended.wait(0.1)
    log = "".join(line if line.endswith("\n") else line + "\n" for line in map(_event_text, tuple(events)) if line)
    return {"log": log or api.kernels_logs(f"{ref}/{version}")}


def _event_text(event: dict[str, str]) -> str:
    """Return the text of an event of the stream."""
    return str(event.get("data") or "")


def _call_delete(api: Any, ref: str) -> dict[str, Any]:
    """Delete a kernel with all its versions. Returns Kaggle's error message, which `kernels_delete` would drop."""
    from kagglesdk.kernels.types.kernels_api_service import ApiDeleteKernelRequest

    request = ApiDeleteKernelRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.delete_kernel(request)
    return {"error": answer.error_message or ""}


def _call_status_of_label(api: Any, ref: str, label: str) -> dict[str, Any]:
    """Return the status for any version label. The rehearsal also sends labels that Kaggle rejects."""
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
