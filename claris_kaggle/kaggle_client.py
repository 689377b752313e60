"""One call to Kaggle's own client, in a process of its own: the only importer of `kaggle`.

The client has no timeouts, prints to stdout while it is imported, and may end the process; so it
is run as `python -m claris_kaggle.kaggle_client METHOD`, with the arguments as JSON on stdin and
the answer as JSON on stdout, by `kaggle_api`, which can end it. Requests go through the client's
typed layer where its convenient one drops versions or hides refusals.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNEL_REFUSALS = (
    "invalid_tags",
    "invalid_dataset_sources",
    "invalid_competition_sources",
    "invalid_kernel_sources",
    "invalid_model_sources",
)
PAGE_LIMIT = 200
# What the client itself answers when the upload failed; before 2.2 it has no name for it.
UPLOAD_FAILED = "Could not submit to competition"


def split_ref(ref: str) -> tuple[str, str]:
    """Owner and slug of `owner/slug`."""
    owner, slug = ref.split("/")
    return owner, slug


def whoami(api: Any) -> dict[str, Any]:
    """The account that the client is logged in as."""
    return {"user": api.config_values.get(api.CONFIG_NAME_USER, "")}


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
    """The newest version's number and source of a kernel."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = split_ref(ref)
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel(request)
    return {"version": answer.metadata.current_version_number or 0, "source": answer.blob.source or ""}


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
    """Upload and submit a file."""
    answer = api.competition_submit(path, message, competition, quiet=True)
    return {"ref": answer.ref or 0, "message": answer.message or "", "uploaded": answer.message != UPLOAD_FAILED}


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
}  # fmt: skip


def run(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The call's answer, or a description of how it failed: login, http, network or client."""
    import requests

    login = {"failure": "login", "text": "no Kaggle token was found, or it was not accepted"}
    try:
        import kaggle  # logs in while it is imported, and in some versions ends the process when it cannot
    except (SystemExit, OSError, ValueError):
        return login
    if not getattr(kaggle.api, "_authenticated", True) or not has_login(kaggle.api):
        return login
    try:
        return {"answer": METHODS[method](kaggle.api, **arguments)}
    except requests.HTTPError as error:
        response = error.response
        status_code = response.status_code if response is not None else 0
        after = response.headers.get("Retry-After", "") if response is not None else ""
        return {"failure": "http", "status": status_code, "text": http_text(response, error), "after": after}
    except (requests.JSONDecodeError, json.JSONDecodeError):
        return {"failure": "network", "text": "the answer was no JSON"}
    except (requests.RequestException, OSError) as error:
        if isinstance(error, requests.RequestException | ConnectionError):
            return {"failure": "network", "text": type(error).__name__}
        return {"failure": "client", "text": f"{type(error).__name__}: {error}"}
    except (Exception, SystemExit) as error:
        return {"failure": "client", "text": f"{type(error).__name__}: {error}"}


def has_login(api: Any) -> bool:
    """Whether the client has anything to prove who it is."""
    values = api.config_values
    return bool(values.get(api.CONFIG_NAME_KEY) or values.get(api.CONFIG_NAME_TOKEN))


def http_text(response: Any, error: Exception) -> str:
    """What the server said, in a line: the message of a JSON answer, and no page of HTML."""
    if response is None:
        return str(error)[:300]
    try:
        message = response.json().get("message", "")
    except (ValueError, AttributeError):
        kind = response.headers.get("Content-Type", "").split(";")[0]
        return f"an answer of type {kind}" if kind else ""
    return " ".join(str(message).split())[:300]


def main() -> None:
    """Answer one call."""
    # The client prints to stdout as it likes: only our own answer may go there.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answer = run(sys.argv[1], json.load(sys.stdin))
    with os.fdopen(answer_to, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    main()
