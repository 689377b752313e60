"""One call to Kaggle's own client, in a process of its own: the only importer of `kaggle`.

The client has no timeouts, prints to stdout while it is imported, and may end the process; so it
is run as `python -m claris_kaggle.kaggle.client_process METHOD`, with the arguments as JSON on stdin and
the answer as JSON on stdout, by `kaggle_api`, which can end it. The client's own calls are used, and
its typed layer only where they drop what is needed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from claris_kaggle.core.time_limit import exit_with_parent
from claris_kaggle.kaggle.client_calls import _TYPED_METHODS
from claris_kaggle.kaggle.wire_log import _record_requests

_KERNEL_REFUSALS = (
    "invalid_tags",
    "invalid_dataset_sources",
    "invalid_competition_sources",
    "invalid_kernel_sources",
    "invalid_model_sources",
)
_SOURCES = ("dataset", "competition", "kernel", "model")
# A name in a listing that lies outside the folder it is fetched to.
_OUTSIDE_PATTERN = r"^/|(?:^|/)\.\.(?:/|$)"
_CALLER = "CLARIS_CALLER"  # the number of the process that asks
# What the client itself answers when the upload failed.
_UPLOAD_FAILED = "Could not submit to competition"


def _call_whoami(api: Any) -> dict[str, Any]:
    """Return the account that the client is logged in as, and how it logged in."""
    method = str(api.config_values.get(api.CONFIG_NAME_AUTH_METHOD, "")).lower()
    return {"user": api.config_values.get(api.CONFIG_NAME_USER, ""), "method": method}


def _call_push(api: Any, folder: str, timeout: int) -> dict[str, Any]:
    """Push the kernel in the folder; every field that can carry a refusal comes back."""
    answer = api.kernels_push(folder, timeout=str(timeout) if timeout else None)
    refused = {name: list(getattr(answer, name) or []) for name in _KERNEL_REFUSALS}
    return {
        "ref": answer.ref or "",
        "url": answer.url or "",
        "version": int(answer.version_number or 0),
        "error": str(answer.error or ""),
        "refused": {name: values for name, values in refused.items() if values},
    }


def _call_kernel(api: Any, ref: str) -> dict[str, Any]:
    """Return the newest version's number, source and inputs of a kernel; the inputs by their names in the metadata."""
    # Typed, because `kernels_pull` drops the version number and writes the source to a file.
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel(request)
    about, blob = answer.metadata, answer.blob
    sources = {f"{kind}_sources": list(getattr(about, f"{kind}_data_sources", None) or []) for kind in _SOURCES}
    version = getattr(about, "current_version_number", None) or 0
    return {"version": version, "source": getattr(blob, "source", None) or "", "sources": sources}


def _call_status(api: Any, ref: str, version: int) -> dict[str, Any]:
    """Return the state of this version's session, in capitals, and why it failed."""
    try:
        answer = api.kernels_status(f"{ref}/{version}")
        return {"status": answer.status.name, "message": answer.failure_message or ""}
    except (KeyError, AttributeError):
        return {"status": "UNKNOWN", "message": ""}  # a state that this client has no name for


def _call_log(api: Any, ref: str, version: int) -> dict[str, Any]:
    """Return the log of this version's session, as Kaggle keeps it."""
    return {"log": api.kernels_logs(f"{ref}/{version}")}


def _call_output(api: Any, ref: str, version: int, folder: str, names: list[str]) -> dict[str, Any]:
    """Fetch these of the version's output files into the folder, and return the names of those that are listed."""
    # Names that climb out of the folder are asked for as well: the client refuses the whole output then.
    pattern = f"^(?:{'|'.join(map(re.escape, names))})$|{_OUTSIDE_PATTERN}"
    paths, _ = api.kernels_output(f"{ref}/{version}", folder, file_pattern=pattern, quiet=True)
    found = {Path(path).relative_to(folder).as_posix() for path in paths}
    return {"listed": sorted(found & set(names))}


def _call_submit(api: Any, path: str, message: str, competition: str) -> dict[str, Any]:
    """Upload and submit a file; the reason of an upload that failed is only printed by the client."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        answer = api.competition_submit(path, message, competition, quiet=True)
    uploaded = answer.message != _UPLOAD_FAILED
    reason = answer.message or "" if uploaded else " ".join(printed.getvalue().split())[-200:]
    return {"ref": answer.ref or 0, "message": reason, "uploaded": uploaded}


def _call_submissions(api: Any, competition: str) -> dict[str, Any]:
    """Return the account's newest submissions to the competition."""
    found = api.competition_submissions(competition, page_size=100)
    return {"submissions": [_submission_values(one) for one in found or []]}


def _submission_values(one: Any) -> dict[str, Any]:
    """Return a submission as plain values; a score that is not known yet is an empty text."""
    return {
        "ref": one.ref or 0,
        "file": one.file_name or "",
        "date": one.date.isoformat() if one.date else "",
        "description": one.description or "",
        "status": one.status.name,
        "error": one.error_description or "",
        "public": one.public_score or "",
        "private": one.private_score or "",
    }


def _call_limits(api: Any, competition: str) -> dict[str, Any]:
    """Return how many submissions are allowed for the rest of today."""
    answer = api.competition_get_submission_limits(competition)
    return {"allowed": answer.num_allowed_now or 0, "today": answer.num_today or 0}


def _call_download_all(api: Any, competition: str, folder: str) -> dict[str, Any]:
    """Fetch the competition's archive into the folder, going on with what is there."""
    api.competition_download_files(competition, path=folder, force=False, quiet=True)
    return {"files": sorted(path.name for path in Path(folder).iterdir() if path.is_file())}


def _call_download_one(api: Any, competition: str, name: str, folder: str) -> dict[str, Any]:
    """Fetch one of the competition's files into the folder."""
    api.competition_download_file(competition, name, path=folder, force=True, quiet=True)
    return {"files": sorted(path.name for path in Path(folder).iterdir() if path.is_file())}


_CLIENT_METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "whoami": _call_whoami,
    "push": _call_push,
    "kernel": _call_kernel,
    "status": _call_status,
    "log": _call_log,
    "output": _call_output,
    "submit": _call_submit,
    "submissions": _call_submissions,
    "limits": _call_limits,
    "download_all": _call_download_all,
    "download_one": _call_download_one,
    **_TYPED_METHODS,
}


def _run_method(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the call's answer, or how it failed: login, http, storage, network, disk or client."""
    import requests

    try:
        _record_requests()
        api = _log_in()
        if api is None:
            return {"failure": "login", "text": "no Kaggle token was found, or it was not accepted"}
        return {"answer": _CLIENT_METHODS[method](api, **arguments)}
    except requests.HTTPError as error:
        return _describe_answer(error.response, error)
    except (requests.JSONDecodeError, json.JSONDecodeError):
        return {"failure": "network", "text": "the answer was no JSON"}
    except (requests.RequestException, ConnectionError) as error:
        return {"failure": "network", "text": type(error).__name__}
    except OSError as error:
        return {"failure": "disk", "text": error.strerror or str(error), "errno": error.errno or 0}
    except (Exception, SystemExit) as error:
        cause = error.__context__
        if isinstance(error, ValueError) and isinstance(cause, requests.HTTPError):
            return _describe_answer(cause.response, cause)  # 401 and 403, which the client puts in its own words
        return {"failure": "client", "text": f"{type(error).__name__}: {error}"}


def _log_in() -> Any:
    """Return the client, logged in; None where there is nothing to log in with, or it was not accepted.

    Raises:
        requests.RequestException: an access token could not be asked about.
    """
    import requests

    try:
        import kaggle  # logs in while it is imported, and swallows what goes wrong

        if not kaggle.api._authenticated:
            kaggle.api.authenticate()  # what was swallowed at import comes once more, and can be told apart
    except requests.RequestException:
        raise
    except (SystemExit, OSError, ValueError):
        return None
    _refuse_nested_errors(kaggle.api)
    return kaggle.api if _has_login(kaggle.api) else None


def _refuse_nested_errors(api: Any) -> None:
    """Let the client raise on `{"error": {"code": ...}}`, which it reads as an answer with nothing in it."""
    import requests

    known = type(api).get_response_processor(api)

    def process(response: Any) -> None:
        if response.text.strip() == "null":
            raise requests.ConnectionError("an answer without content")
        if _error_of(response)[0] >= 400:
            raise requests.HTTPError(response=response)
        known(response)

    api.get_response_processor = lambda: process


def _error_of(response: Any) -> tuple[int, str]:
    """Return code and message of an error in a JSON answer, plain or nested; 0 and no message where there is none."""
    if "json" not in response.headers.get("Content-Type", ""):
        return 0, ""
    try:
        answer = response.json()
    except ValueError:
        return 0, ""
    nested = answer.get("error") if isinstance(answer, dict) else None
    about = nested if isinstance(nested, dict) else answer if isinstance(answer, dict) else {}
    code, message = about.get("code", 0), about.get("message") or about.get("status") or nested or ""
    return int(code) if str(code).isdigit() else 0, " ".join(str(message).split())[:300]


def _describe_answer(response: Any, error: Exception) -> dict[str, Any]:
    """Return what a refusal says; one from the storage that a download was sent to is told apart from Kaggle's own."""
    if response is None:
        return {"failure": "http", "status": 0, "text": str(error)[:300], "after": ""}
    kind = "http" if "/v1/" in urlsplit(response.url or "/v1/").path else "storage"
    after = response.headers.get("Retry-After", "")
    code, message = _error_of(response)
    status = response.status_code if response.status_code >= 400 else code
    return {"failure": kind, "status": status, "text": message or _describe_body(response), "after": after}


def _describe_body(response: Any) -> str:
    """Return the kind of an answer that says nothing in JSON."""
    kind = response.headers.get("Content-Type", "").split(";")[0]
    return f"an answer of type {kind}" if kind and "json" not in kind else ""


def _has_login(api: Any) -> bool:
    """Return True if the client has anything to prove who it is."""
    values = api.config_values
    return bool(values.get(api.CONFIG_NAME_KEY) or values.get(api.CONFIG_NAME_TOKEN))


def _answer_call() -> None:
    """Answer one call."""
    # A killed fetch must not go on writing beside the next. On Windows a virtual environment's launcher stands between.
    exit_with_parent(int(os.environ.get(_CALLER, "0")))
    # The client prints to stdout as it likes: only our own answer may go there.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answer = _run_method(sys.argv[1], json.load(sys.stdin))
    with os.fdopen(answer_to, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    _answer_call()
