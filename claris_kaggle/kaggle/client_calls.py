"""Call Kaggle's client for the account, the log of a running session and deletion; `client_process` runs these."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from claris_kaggle.kaggle.client_answers import _CompetitionState, _QuotaAnswer

if TYPE_CHECKING:
    from kaggle.api.kaggle_api_extended import KaggleApi
    from kagglesdk.competitions.types.competition_api_service import ApiCompetition

# A stream sends the whole log and then stays open: reading stops after _QUIET_SECONDS without a new line.
_LOG_LINES, _QUIET_SECONDS = 400, 2.0


def _call_quota(api: KaggleApi) -> _QuotaAnswer:
    """Return the GPU seconds of this week. Kaggle omits times of zero from its answer."""
    answer = api.quota_view()
    gpu, renews = answer.gpu_quota, answer.quota_refresh_time
    times = (gpu.time_used, gpu.time_reserved, gpu.total_time_allowed) if gpu else (None, None, None)
    used, reserved, allowed = (time.total_seconds() if time else 0.0 for time in times)
    renewal = renews.isoformat() if renews else ""
    return _QuotaAnswer(known=gpu is not None, used=used, reserved=reserved, allowed=allowed, renews=renewal)


def _call_competition(api: KaggleApi, competition: str) -> _CompetitionState:
    """Return the account's state in the competition."""
    for listed in _find_competition(api, competition):
        if listed.ref.rstrip("/").split("/")[-1] == competition:
            return _CompetitionState(
                found=True,
                entered=bool(listed.user_has_entered),
                closed=bool(listed.submissions_disabled),
                only_kernels=bool(listed.is_kernels_submissions_only),
                daily=listed.max_daily_submissions or 0,
            )
    return _CompetitionState(found=False)


def _find_competition(api: KaggleApi, name: str) -> list[ApiCompetition]:
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
    found = api.competitions_list(group="entered", search=name)
    return [one for one in (found and found.competitions) or [] if one]


def _call_running_log(api: KaggleApi, ref: str, version: int, seconds: float) -> str:
    """Return the last lines that the session of this version has printed.

    Args:
        api: the client.
        ref: owner/slug.
        version: the number of the version.
        seconds: longest time for reading the stream.
    """
    events: deque[dict[str, str]] = deque(maxlen=_LOG_LINES)
    last_event = [time.monotonic()]
    started, ended = threading.Event(), threading.Event()

    def read() -> None:
        # A session without a stream answers with an error; the saved log is then requested below.
        with contextlib.suppress(Exception):
            for event in api.kernels_logs_stream(f"{ref}/{version}"):
                events.append(event)
                last_event[0] = time.monotonic()
                started.set()
        ended.set()

    # The client reads without a timeout, so a daemon thread reads, and is abandoned when the time is over.
    threading.Thread(target=read, daemon=True).start()
    end = time.monotonic() + seconds
    while not ended.is_set() and time.monotonic() < end:
        if started.is_set() and time.monotonic() - last_event[0] > _QUIET_SECONDS:
            break
        ended.wait(0.1)
    log = "".join(line if line.endswith("\n") else line + "\n" for line in map(_event_text, tuple(events)) if line)
    return log or str(api.kernels_logs(f"{ref}/{version}"))


def _event_text(event: dict[str, str]) -> str:
    """Return the text of an event of the stream."""
    return str(event.get("data") or "")


def _call_delete(api: KaggleApi, ref: str) -> str:
    """Delete a kernel with all its versions. Returns Kaggle's error message, which `kernels_delete` would drop."""
    from kagglesdk.kernels.types.kernels_api_service import ApiDeleteKernelRequest

    request = ApiDeleteKernelRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.delete_kernel(request)
    return str(answer.error_message or "")


def _call_status_of_label(api: KaggleApi, ref: str, label: str) -> str:
    """Return the status for any version label. The rehearsal also sends labels that Kaggle rejects."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest

    request = ApiGetKernelSessionStatusRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    request.version_label = label
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel_session_status(request)
    return str(answer.status.name)


_TYPED_METHODS: dict[str, Callable[..., object]] = {
    "quota": _call_quota,
    "competition": _call_competition,
    "running_log": _call_running_log,
    "delete": _call_delete,
    "status_of_label": _call_status_of_label,
}
