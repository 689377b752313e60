"""One call to Kaggle's own client, in a process of its own: the only importer of `kaggle`.

The client has no timeouts, prints to stdout while it is imported, and may end the process; so it
is run as `python -m claris_kaggle.kaggle_client METHOD`, with the arguments as JSON on stdin and
the answer as JSON on stdout, by `kaggle_api`, which can end it. Requests go through the client's
typed layer where its convenient one drops versions or hides refusals.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from claris_kaggle.client_calls import CALLS
from claris_kaggle.stopping import end_with_parent
from claris_kaggle.wire_log import record_requests

KERNEL_REFUSALS = (
    "invalid_tags",
    "invalid_dataset_sources",
    "invalid_competition_sources",
    "invalid_kernel_sources",
    "invalid_model_sources",
)
SOURCES = ("dataset", "competition", "kernel", "model")
PAGE_LIMIT = 200
# What the client itself answers when the upload failed; before 2.2 it has no name for it.
UPLOAD_FAILED = "Could not submit to competition"


def split_ref(ref: str) -> tuple[str, str]:
    """Owner and slug of `owner/slug`."""
    owner, slug = ref.split("/")
    return owner, slug


def whoami(api: Any) -> dict[str, Any]:
    """The account that the client is logged in as."""
    method = str(api.config_values.get("auth_method", "")).lower()
    return {"user": api.config_values.get(api.CONFIG_NAME_USER, ""), "method": method}


def push(api: Any, folder: str, timeout: int) -> dict[str, Any]:
    """Push the kernel in the folder; every field that can carry a refusal comes back."""
    answer = api.kernels_push(folder, timeout=str(timeout) if timeout else None)
    refused = {name: list(getattr(answer, name) or []) for name in KERNEL_REFUSALS}
    return {
        "ref": answer.ref or "",
        "url": answer.url or "",
        "version": answer.version_number or 0,
        "error": answer.error or "",
        "refused": {name: values for name, values in refused.items() if values},
    }


def kernel(api: Any, ref: str) -> dict[str, Any]:
    """The newest version's number, source and inputs of a kernel; the inputs by their names in the metadata."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = split_ref(ref)
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel(request)
    about = answer.metadata
    sources = {f"{kind}_sources": list(getattr(about, f"{kind}_data_sources") or []) for kind in SOURCES}
    return {"version": about.current_version_number or 0, "source": answer.blob.source or "", "sources": sources}


def status(api: Any, ref: str, version: int) -> dict[str, Any]:
    """The state of this version's session, in capitals, and why it failed."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest

    request = ApiGetKernelSessionStatusRequest()
    request.user_name, request.kernel_slug = split_ref(ref)
    request.version_label = str(version)
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel_session_status(request)
    return {"status": answer.status.name, "message": answer.failure_message or ""}


def outputs(api: Any, ref: str, version: int) -> dict[str, Any]:
    """Names and addresses of this version's output files, and its log."""
    from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest

    files: list[dict[str, str]] = []
    token, log = "", ""
    with api.build_kaggle_client() as client:
        for _ in range(PAGE_LIMIT):
            request = ApiListKernelSessionOutputRequest()
            request.user_name, request.kernel_slug = split_ref(ref)
            request.version_label = str(version)
            request.page_size, request.page_token = 100, token
            answer = client.kernels.kernels_api_client.list_kernel_session_output(request)
            files += [{"name": one.file_name, "url": one.url} for one in answer.files or []]
            log = answer.log or log
            token = answer.next_page_token or ""
            if not token:
                break
    return {"files": files, "log": log}


def submit(api: Any, path: str, message: str, competition: str) -> dict[str, Any]:
    """Upload and submit a file; the reason of an upload that failed is only printed by the client."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        answer = api.competition_submit(path, message, competition, quiet=True)
    uploaded = answer.message != UPLOAD_FAILED
    reason = answer.message or "" if uploaded else " ".join(printed.getvalue().split())[-200:]
    return {"ref": answer.ref or 0, "message": reason, "uploaded": uploaded}


def submissions(api: Any, competition: str) -> dict[str, Any]:
    """The account's newest submissions to the competition."""
    from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest

    request = ApiListSubmissionsRequest()
    request.competition_name, request.page_size = competition, 100
    with api.build_kaggle_client() as client:
        answer = client.competitions.competition_api_client.list_submissions(request)
    return {"submissions": [describe(one) for one in answer.submissions or []]}


def describe(one: Any) -> dict[str, Any]:
    """A submission as plain values; a score that is not known yet is an empty text."""
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


def limits(api: Any, competition: str) -> dict[str, Any]:
    """How many submissions are allowed for the rest of today."""
    from kagglesdk.competitions.types.competition_api_service import ApiGetSubmissionLimitsRequest

    request = ApiGetSubmissionLimitsRequest()
    request.competition_name = competition
    with api.build_kaggle_client() as client:
        answer = client.competitions.competition_api_client.get_submission_limits(request)
    return {"allowed": answer.num_allowed_now or 0, "today": answer.num_today or 0}


def download_all(api: Any, competition: str, folder: str) -> dict[str, Any]:
    """Fetch the competition's archive into the folder, going on with what is there."""
    api.competition_download_files(competition, path=folder, force=False, quiet=True)
    return {"files": sorted(path.name for path in Path(folder).iterdir() if path.is_file())}


def download_one(api: Any, competition: str, name: str, folder: str) -> dict[str, Any]:
    """Fetch one of the competition's files into the folder."""
    api.competition_download_file(competition, name, path=folder, force=True, quiet=True)
    return {"files": sorted(path.name for path in Path(folder).iterdir() if path.is_file())}


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one
    for one in (
        whoami, push, kernel, status, outputs, submit, submissions, limits, download_all, download_one,
    )
} | CALLS  # fmt: skip


def run(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The call's answer, or a description of how it failed: login, http, storage, network, disk or client."""
    import requests

    try:
        record_requests()
        api = log_in()
        if api is None:
            return {"failure": "login", "text": "no Kaggle token was found, or it was not accepted"}
        return {"answer": METHODS[method](api, **arguments)}
    except requests.HTTPError as error:
        return describe_answer(error.response, error)
    except (requests.JSONDecodeError, json.JSONDecodeError):
        return {"failure": "network", "text": "the answer was no JSON"}
    except (requests.RequestException, ConnectionError) as error:
        return {"failure": "network", "text": type(error).__name__}
    except OSError as error:
        return {"failure": "disk", "text": error.strerror or str(error), "errno": error.errno or 0}
    except (Exception, SystemExit) as error:
        return {"failure": "client", "text": f"{type(error).__name__}: {error}"}


def log_in() -> Any:
    """The client, logged in; None where there is nothing to log in with, or it was not accepted.

    Raises:
        requests.RequestException: an access token could not be asked about.
    """
    import requests

    try:
        import kaggle  # logs in while it is imported, and in some versions ends the process when it cannot

        if not getattr(kaggle.api, "_authenticated", True):
            kaggle.api.authenticate()  # what was swallowed at import comes once more, and can be told apart
    except requests.RequestException:
        raise
    except (SystemExit, OSError, ValueError):
        return None
    return kaggle.api if has_login(kaggle.api) else None


def describe_answer(response: Any, error: Exception) -> dict[str, Any]:
    """What a refusal says; one from the storage that a download was sent on to is told apart from Kaggle's own."""
    if response is None:
        return {"failure": "http", "status": 0, "text": str(error)[:300], "after": ""}
    kind = "http" if "/v1/" in urlsplit(response.url or "/v1/").path else "storage"
    after = response.headers.get("Retry-After", "")
    return {"failure": kind, "status": response.status_code, "text": http_text(response), "after": after}


def has_login(api: Any) -> bool:
    """Whether the client has anything to prove who it is."""
    values = api.config_values
    return bool(values.get(api.CONFIG_NAME_KEY) or values.get(api.CONFIG_NAME_TOKEN))


def http_text(response: Any) -> str:
    """What the server said, in a line: the message of a JSON answer, and no page of HTML."""
    try:
        message = response.json().get("message", "")
    except (ValueError, AttributeError):
        kind = response.headers.get("Content-Type", "").split(";")[0]
        return f"an answer of type {kind}" if kind else ""
    return " ".join(str(message).split())[:300]


def main() -> None:
    """Answer one call."""
    end_with_parent()  # a killed fetch must not go on writing beside the next
    # The client prints to stdout as it likes: only our own answer may go there.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answer = run(sys.argv[1], json.load(sys.stdin))
    with os.fdopen(answer_to, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    main()
