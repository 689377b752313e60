"""Run one call of Kaggle's client in a separate process. Only this process imports it.

The client has no timeouts, prints to stdout while it is imported, and may end the process. Therefore `api` runs it as
`python -m claris_kaggle.kaggle.client_process METHOD`, with the arguments as JSON on stdin and the answer as JSON on
stdout, and can kill it. The client's high-level methods are used; its typed layer only where they drop a needed field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from claris_kaggle.core.time_limit import exit_with_parent
from claris_kaggle.kaggle.client_answers import (
    _CallFailure,
    _KernelSource,
    _ListedSubmission,
    _Login,
    _PushAnswer,
    _SessionState,
    _SubmissionLimits,
    _SubmitAnswer,
)
from claris_kaggle.kaggle.client_calls import _TYPED_METHODS
from claris_kaggle.kaggle.token_files import _explain_token_files
from claris_kaggle.kaggle.wire_log import _record_requests

if TYPE_CHECKING:
    from kaggle.api.kaggle_api_extended import KaggleApi
    from requests import Response

_KERNEL_REFUSALS = (
    "invalid_tags",
    "invalid_dataset_sources",
    "invalid_competition_sources",
    "invalid_kernel_sources",
    "invalid_model_sources",
)
_SOURCES = ("dataset", "competition", "kernel", "model")
# Matches a listed name that would be written outside the target folder.
_OUTSIDE_PATTERN = r"^/|(?:^|/)\.\.(?:/|$)"
_CALLER_VARIABLE = "CLARIS_CALLER"  # process id of the caller
# The client's own answer after a failed upload.
_UPLOAD_FAILED = "Could not submit to competition"


def _call_whoami(api: KaggleApi) -> _Login:
    """Return the user name of the account and the login method."""
    method = str(api.config_values.get(api.CONFIG_NAME_AUTH_METHOD, "")).lower()
    return _Login(user=api.config_values.get(api.CONFIG_NAME_USER, ""), method=method)


def _call_push(api: KaggleApi, folder: str, timeout: int) -> _PushAnswer:
    """Push the kernel in the folder, and return every field that can report a refusal."""
    answer = api.kernels_push(folder, timeout=str(timeout) if timeout else None)
    refused = {name: list(getattr(answer, name) or []) for name in _KERNEL_REFUSALS}
    return _PushAnswer(
        ref=answer.ref or "",
        url=answer.url or "",
        version=int(answer.version_number or 0),
        error=str(answer.error or ""),
        refused={name: values for name, values in refused.items() if values},
    )


def _call_kernel(api: KaggleApi, ref: str) -> _KernelSource:
    """Return number, source and inputs of a kernel's newest version; the inputs by their names in the metadata."""
    # Typed client, because `kernels_pull` drops the version number and writes the source to a file.
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    with api.build_kaggle_client() as client:
        answer = client.kernels.kernels_api_client.get_kernel(request)
    metadata, blob = answer.metadata, answer.blob
    sources = {f"{kind}_sources": list(getattr(metadata, f"{kind}_data_sources", None) or []) for kind in _SOURCES}
    version = getattr(metadata, "current_version_number", None) or 0
    return _KernelSource(version=int(version), source=getattr(blob, "source", None) or "", sources=sources)


def _call_status(api: KaggleApi, ref: str, version: int) -> _SessionState:
    """Return the state of this version's session, in capitals, and its failure message."""
    try:
        answer = api.kernels_status(f"{ref}/{version}")
        return _SessionState(status=answer.status.name, message=answer.failure_message or "")
    except (KeyError, AttributeError):
        return _SessionState(status="UNKNOWN", message="")  # a state that this client does not know


def _call_log(api: KaggleApi, ref: str, version: int) -> str:
    """Return the log of this version's session, as Kaggle stores it."""
    return str(api.kernels_logs(f"{ref}/{version}"))


def _call_output(api: KaggleApi, ref: str, version: int, folder: str, names: list[str]) -> list[str]:
    """Fetch the named output files of a version into the folder, and return the names that Kaggle lists."""
    # Names outside the folder are requested as well: the client then refuses the whole output.
    pattern = f"^(?:{'|'.join(map(re.escape, names))})$|{_OUTSIDE_PATTERN}"
    paths, _ = api.kernels_output(f"{ref}/{version}", folder, file_pattern=pattern, quiet=True)
    found = {Path(path).relative_to(folder).as_posix() for path in paths}
    return sorted(found & set(names))


def _call_submit(api: KaggleApi, path: str, message: str, competition: str) -> _SubmitAnswer:
    """Upload and submit a file. The client only prints the reason of a failed upload, so its output is captured."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        answer = api.competition_submit(path, message, competition, quiet=True)
    uploaded = answer.message != _UPLOAD_FAILED
    reason = answer.message or "" if uploaded else " ".join(printed.getvalue().split())[-200:]
    return _SubmitAnswer(ref=int(answer.ref or 0), message=reason, uploaded=uploaded)


def _call_submissions(api: KaggleApi, competition: str) -> list[_ListedSubmission]:
    """Return the account's newest submissions to the competition."""
    found = api.competition_submissions(competition, page_size=100)
    return [
        _ListedSubmission(
            ref=submission.ref or 0,
            description=submission.description or "",
            status=submission.status.name,
            error=submission.error_description or "",
            public=submission.public_score or "",
            private=submission.private_score or "",
        )
        for submission in found or []
        if submission
    ]


def _call_limits(api: KaggleApi, competition: str) -> _SubmissionLimits:
    """Return the numbers of submissions left today and made today."""
    answer = api.competition_get_submission_limits(competition)
    return _SubmissionLimits(allowed=answer.num_allowed_now or 0, today=answer.num_today or 0)


def _call_download_all(api: KaggleApi, competition: str, folder: str) -> None:
    """Fetch the competition's archive into the folder, resuming a partial download."""
    api.competition_download_files(competition, path=folder, force=False, quiet=True)


def _call_download_one(api: KaggleApi, competition: str, name: str, folder: str) -> None:
    """Fetch one of the competition's files into the folder."""
    api.competition_download_file(competition, name, path=folder, force=True, quiet=True)


def _call_dataset_files(api: KaggleApi, dataset: str) -> list[str]:
    """Return the names of the dataset's files, at most 200."""
    answer = api.dataset_list_files(dataset, page_size=200)
    return [one.name for one in answer.dataset_files or [] if one]


def _call_download_dataset_file(api: KaggleApi, dataset: str, name: str, folder: str) -> None:
    """Fetch one file of the dataset into the folder. The client prints the dataset's address even if quiet."""
    with contextlib.redirect_stdout(io.StringIO()):
        api.dataset_download_file(dataset, name, path=folder, force=True, quiet=True)


_CLIENT_METHODS: dict[str, Callable[..., object]] = {
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
    "dataset_files": _call_dataset_files,
    "download_dataset_file": _call_download_dataset_file,
    **_TYPED_METHODS,
}


def _run_method(method: str, arguments: str) -> str:
    """Run the call with its arguments as JSON, and return its answer or its failure as JSON."""
    answer = _try_method(method, json.loads(arguments))
    kind = "failure" if isinstance(answer, _CallFailure) else "answer"
    return json.dumps({kind: answer}, default=dataclasses.asdict)


def _try_method(method: str, arguments: Mapping[str, object]) -> object:
    """Return the call's answer, or its failure."""
    import requests

    try:
        _record_requests()
        api = _log_in()
        if api is None:
            return _CallFailure(kind="login", text=_explain_login())
        return _CLIENT_METHODS[method](api, **arguments)
    except requests.HTTPError as error:
        return _describe_refusal(error.response, error)
    except (requests.JSONDecodeError, json.JSONDecodeError):
        return _CallFailure(kind="network", text="the answer was not JSON")
    except (requests.RequestException, ConnectionError) as error:
        return _CallFailure(kind="network", text=type(error).__name__)
    except OSError as error:
        return _CallFailure(kind="disk", text=error.strerror or str(error), errno=error.errno or 0)
    except (Exception, SystemExit) as error:
        cause = error.__context__
        if isinstance(error, ValueError) and isinstance(cause, requests.HTTPError):
            return _describe_refusal(cause.response, cause)  # 401 and 403, which the client rewords
        if _is_empty_answer(error):
            return _CallFailure(kind="network", text="an answer without content")
        return _CallFailure(kind="client", text=f"{type(error).__name__}: {error}")


def _explain_login() -> str:
    """Return why there is no login, with the fault of the token file if one is known."""
    fault = _explain_token_files()
    return f"no Kaggle token was accepted: {fault}" if fault else "no Kaggle token was found, or it was not accepted"


def _describe_refusal(response: Response | None, error: Exception) -> _CallFailure:
    """Return an error response, or the fault of the token file if Kaggle refused the token."""
    fault = _explain_token_files() if response is not None and response.status_code == 401 else ""
    if fault:
        return _CallFailure(kind="login", text=f"Kaggle refused the token: {fault}")
    return _describe_answer(response, error)


def _is_empty_answer(error: BaseException) -> bool:
    """Return True for the TypeError that the client raises when it looks for a `code` in the answer `null`."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, TypeError) and bool(frames) and frames[-1].name == "_prepare_response"


def _log_in() -> KaggleApi | None:
    """Return the logged-in client; None if there are no credentials or they were rejected.

    Raises:
        requests.RequestException: an access token could not be checked.
    """
    import requests

    try:
        import kaggle  # logs in on import, and swallows errors

        if not kaggle.api._authenticated:
            kaggle.api.authenticate()  # raises the swallowed error again, to classify it
    except requests.RequestException:
        raise
    except (SystemExit, OSError, ValueError):
        return None
    _raise_nested_errors(kaggle.api)
    return kaggle.api if _has_login(kaggle.api) else None


def _raise_nested_errors(api: KaggleApi) -> None:
    """Make the client raise an error for `{"error": {"code": ...}}`, which it treats as an empty answer."""
    import requests

    process_response = type(api).get_response_processor(api)

    def process(response: Response) -> None:
        if _parse_json_error(response)[0] >= 400:
            raise requests.HTTPError(response=response)
        process_response(response)

    api.get_response_processor = lambda: process  # type: ignore[method-assign]


def _parse_json_error(response: Response) -> tuple[int, str]:
    """Return code and message of a JSON error, plain or nested; 0 and an empty string if there is none."""
    if "json" not in response.headers.get("Content-Type", ""):
        return 0, ""
    try:
        answer = response.json()
    except ValueError:
        return 0, ""
    nested = answer.get("error") if isinstance(answer, dict) else None
    content = nested if isinstance(nested, dict) else answer if isinstance(answer, dict) else {}
    code, message = content.get("code", 0), content.get("message") or content.get("status") or nested or ""
    return int(code) if str(code).isdigit() else 0, " ".join(str(message).split())[:300]


def _describe_answer(response: Response | None, error: Exception) -> _CallFailure:
    """Return status and text of an error response. The failure is `storage` if a download host answered, not Kaggle."""
    if response is None:
        return _CallFailure(kind="http", text=str(error)[:300])
    kind = "http" if "/v1/" in urlsplit(response.url or "/v1/").path else "storage"
    retry_after = response.headers.get("Retry-After", "")
    code, message = _parse_json_error(response)
    status = response.status_code if response.status_code >= 400 else code
    return _CallFailure(kind=kind, status=status, text=message or _describe_body(response), retry_after=retry_after)


def _describe_body(response: Response) -> str:
    """Return the content type of a response that is not JSON, as text; an empty string for JSON."""
    kind = response.headers.get("Content-Type", "").split(";")[0]
    return f"an answer of type {kind}" if kind and "json" not in kind else ""


def _has_login(api: KaggleApi) -> bool:
    """Return True if the client has credentials."""
    values = api.config_values
    return bool(values.get(api.CONFIG_NAME_KEY) or values.get(api.CONFIG_NAME_TOKEN))


def _answer_call() -> None:
    """Read one call from stdin, and write its answer to stdout."""
    # Exit with the caller: an orphaned fetch would write beside the next one. On Windows the direct parent is the
    # launcher of the virtual environment.
    exit_with_parent(int(os.environ.get(_CALLER_VARIABLE, "0")))
    # The client prints to stdout, which must contain only the answer.
    real_stdout = os.dup(1)
    os.dup2(2, 1)
    answer = _run_method(sys.argv[1], sys.stdin.read())
    with os.fdopen(real_stdout, "w", encoding="utf-8") as stream:
        stream.write(answer)


if __name__ == "__main__":
    _answer_call()
