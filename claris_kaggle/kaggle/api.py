"""Call Kaggle: every call has a deadline, every refusal is an error, and safe calls are retried.

Only Kaggle's client handles the token. This module never reads, stores or prints it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError, KaggleError
from claris_kaggle.core.files import explain_os_error as explain_disk
from claris_kaggle.core.platforms import HOME
from claris_kaggle.kaggle.client_answers import (
    _CallFailure,
    _CompetitionState,
    _KernelSource,
    _ListedSubmission,
    _Login,
    _PushAnswer,
    _QuotaAnswer,
    _SessionState,
    _SubmissionLimits,
    _SubmitAnswer,
)

_T = TypeVar("_T")
_COMPETITION = "histopathologic-cancer-detection"
_DEADLINE = float(os.environ.get("CLARIS_KAGGLE_DEADLINE", "120"))
_PUSH_DEADLINE = 300.0
_DOWNLOAD_DEADLINE = 6 * 3600.0
# Seconds before the second, third ... attempt. A longer Retry-After of the server is respected, up to the maximum.
_CALL_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
_MAX_RETRY_PAUSE = 120.0
_CONFLICT = 409
# Environment variables that would change the client's behaviour, or print requests with their token.
_REMOVED_VARIABLES = ("VERBOSE", "VERBOSE_OUTPUT", "KAGGLE_COMPETITION", "KAGGLE_PATH", "KAGGLE_PROXY", "KAGGLE_TOKEN")
# The pages that a message names.
_SITE = "https://www.kaggle.com"
_SETTINGS_PAGE, _CODE_PAGE = f"{_SITE}/settings", f"{_SITE}/code"
_LOGIN = (
    f"Run kaggle auth login; or create a token at {_SETTINGS_PAGE}, under API, and put it into "
    f"KAGGLE_API_TOKEN, {HOME}/.kaggle/access_token or {HOME}/.kaggle/kaggle.json"
)
_HTML_RESPONSE_HINT = "The response was an HTML page: check for a proxy, a login page or an outage, then run it again"


@dataclass(frozen=True)
class _Call(Generic[_T]):
    """A call of Kaggle's client.

    Attributes:
        method: its name in `client_process`.
        task: completes the sentence "Kaggle refused to ...".
        parse: returns the answer from its JSON: from the values of an object by their names, or from another value.
        of: kernel, competition or dataset; selects the page that a hint names after a refusal. Empty for none of them.
    """

    method: str
    task: str
    parse: Callable[..., _T]
    of: str = ""


_WHOAMI = _Call("whoami", "name the owner of the token", _Login)
_PUSH = _Call("push", "accept the kernel", _PushAnswer)
_KERNEL = _Call("kernel", "show the kernel", _KernelSource, of="kernel")
_STATUS = _Call("status", "return the status of the session", _SessionState, of="kernel")
_LOG = _Call("log", "return the log of the session", str, of="kernel")
_SESSION_OUTPUT = _Call("output", "return the output of the session", set[str], of="kernel")
_SUBMIT = _Call("submit", "accept the submission", _SubmitAnswer, of="competition")
_SUBMISSIONS = _Call(
    "submissions", "list the submissions", lambda found: [_ListedSubmission(**one) for one in found], of="competition"
)
_LIMITS = _Call("limits", "return the submission limits", _SubmissionLimits, of="competition")
_QUOTA = _Call("quota", "return the GPU hours", _QuotaAnswer)
_COMPETITION_STATE = _Call("competition", "show the competition", _CompetitionState)
_RUNNING_LOG = _Call("running_log", "return the log of the session", str)
_DELETE = _Call("delete", "delete the kernel", str)
_STATUS_OF_LABEL = _Call("status_of_label", "return the status of the session", str)
_DOWNLOAD_ALL = _Call("download_all", "return the competition's files", lambda nothing: None, of="competition")
_DOWNLOAD_ONE = _Call("download_one", "return a file of the competition", lambda nothing: None, of="competition")
_DATASET_FILES = _Call("dataset_files", "list the files of the dataset", list[str], of="dataset")
_DOWNLOAD_DATASET_FILE = _Call(
    "download_dataset_file", "return a file of the dataset", lambda nothing: None, of="dataset"
)


def _rules_page(competition: str = _COMPETITION) -> str:
    """Return the URL of the page where a competition's rules are accepted."""
    return f"{_SITE}/c/{competition}/rules"


def _call_once(call: _Call[_T], *, deadline: float = _DEADLINE, **arguments: object) -> _T:
    """Make the call once with these arguments of its method, and return the answer.

    Raises:
        KaggleError: refused, failed or timed out; `retryable` is True if a retry may succeed.
        DiskError: the client could not write a fetched file.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _REMOVED_VARIABLES}
    # -P: a kaggle.py in the user's own folder is not the client.
    command = [sys.executable, "-P", "-m", "claris_kaggle.kaggle.client_process", call.method]
    environment["CLARIS_CALLER"] = str(os.getpid())
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")) if part
    )
    try:
        done = subprocess.run(
            command,
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            errors="replace",  # what the client prints may be of any encoding; the answer is ASCII
            timeout=deadline,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        text = f"Kaggle did not answer within {deadline:.0f} s"
        raise KaggleError(text, "", "Run the same command again", retryable=True) from None
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1][:200] if lines else f"exit code {done.returncode}"
        hint = "Add --debug to the command to see its full output"
        raise KaggleError(f"Kaggle's client failed ({reason})", "", hint) from RuntimeError(done.stderr[-4000:])
    if "failure" in reply:
        raise _explain_call_failure(call, _CallFailure(**reply["failure"]), arguments)
    answer = reply["answer"]
    return call.parse(**answer) if isinstance(answer, dict) else call.parse(answer)


def _explain_call_failure(call: _Call[_T], failure: _CallFailure, arguments: Mapping[str, object]) -> ClarisError:
    """Return the error for a failed call, with a hint that says what to do."""
    text, status = failure.text.rstrip("."), failure.status
    details = f": {text}" if text else ""
    if failure.kind == "disk":
        return explain_disk(OSError(failure.errno, failure.text), arguments.get("folder", "the disk"))
    if failure.kind == "login":
        return KaggleError(text, "", _LOGIN, status=401)  # all other calls would fail as well
    if failure.kind == "network":
        return KaggleError(
            f"Kaggle could not be reached ({text})", "", "Check the network, then run it again", retryable=True
        )
    if call is _SESSION_OUTPUT and "outside" in text:
        found = f"the output lists a file outside its folder{details}"
        return KaggleError(found, "nothing was written", f"Do not trust this output; see{_format_page(arguments)}")
    if failure.kind == "client":
        return KaggleError(f"Kaggle's client did not {call.task}{details}", "", "")
    if failure.kind == "storage":
        found = f"the upload address of Kaggle did not {call.task} ({status})"
        return KaggleError(
            found, "", "Run the same command again: it gets a new address", status=status, retryable=True
        )
    return _explain_http_error(call, failure, arguments)


def _explain_http_error(call: _Call[_T], failure: _CallFailure, arguments: Mapping[str, object]) -> KaggleError:
    """Return the error for an error response of Kaggle, with a hint that depends on its HTTP status."""
    text, status = failure.text.rstrip("."), failure.status
    details = f": {text}" if text else ""
    if status == 401:
        found = f"Kaggle refused the token (401{details}); it has expired or was revoked"
        return KaggleError(found, "expected a valid token", _LOGIN, status=status)
    if status == 403:
        found = f"Kaggle refused to {call.task} (403{details})"
        hint = _HTML_RESPONSE_HINT if text.startswith("an answer of type") else _explain_403(call, arguments)
        return KaggleError(found, "", hint, status=status)
    if status == 404:
        found = f"Kaggle did not find it and could not {call.task} (404{details})"
        return KaggleError(found, "", f"Check the name{_format_page(arguments)}", status=status)
    retryable = status == 429 or status >= 500
    hint = "Try again later" if retryable else "Correct this, then run the same command again"
    if call is _SUBMIT and "limit" in text.lower():
        hint = "Run the same command after midnight UTC"
    retry_after = float(failure.retry_after) if failure.retry_after.replace(".", "", 1).isdigit() else 0.0
    found = f"Kaggle answered {status} and did not {call.task}{details}"
    return KaggleError(found, "", hint, status=status, retryable=retryable, retry_after=retry_after)


def _explain_403(call: _Call[_T], arguments: Mapping[str, object]) -> str:
    """Return the hint for a 403 response. It names the page to open, which depends on the call."""
    if call.of == "competition":
        page = _rules_page(str(arguments.get("competition", _COMPETITION)))
        return f"Accept the rules at {page}, or check the token at {_SETTINGS_PAGE}"
    if call.of == "kernel":
        where = _format_page(arguments)
        reasons = "the kernel does not exist, is private in another account, or is outside the token's scope"
        return f"Check the name{where}: {reasons} ({_SETTINGS_PAGE})"
    if call.of == "dataset":
        where = _format_page(arguments)
        return f"Check the name{where}: the dataset does not exist or is private in another account"
    return f"Check the token's scope and the phone number at {_SETTINGS_PAGE}"


def _format_page(arguments: Mapping[str, object]) -> str:
    """Return ` at ` and the page of the kernel or dataset in the arguments; an empty string for other calls."""
    if arguments.get("dataset"):
        return f" at {_SITE}/datasets/{arguments['dataset']}"
    return f" at {_CODE_PAGE}/{arguments['ref']}" if arguments.get("ref") else ""


def _call_with_retries(call: _Call[_T], *, deadline: float = _DEADLINE, **arguments: object) -> _T:
    """Return the answer of a read-only call. Temporary failures are retried after increasing pauses."""
    return _retry_attempt(lambda: _call_once(call, deadline=deadline, **arguments))


def _retry_attempt(attempt: Callable[[], _T], find_result: Callable[[], _T | None] | None = None) -> _T:
    """Return the attempt's answer. Temporary failures are retried.

    Args:
        find_result: for an attempt that changes something: returns the result if Kaggle carried out the failed
            attempt nevertheless, else None. It is called after the pause, because a server may still carry out a
            request whose response was lost. After a conflict (409) only `find_result` is called and nothing is
            retried: the conflict may be with the previous attempt, whose response was lost.
    Raises:
        KaggleError: refused permanently, or still failing after the last pause.
    """
    failure: KaggleError | None = None
    for pause in (*_CALL_PAUSES, None):
        try:
            return attempt()
        except KaggleError as error:
            failure = error
            if not error.retryable and not (find_result and error.status == _CONFLICT):
                raise
        if pause is not None:
            wait = min(max(pause, failure.retry_after), _MAX_RETRY_PAUSE)
            log_info(f"{failure.found}; trying again in {wait:.0f} s")
            time.sleep(wait)
        if find_result is not None:
            result = _poll_until_found(find_result) if _may_have_succeeded(failure) else find_result()
            if result is not None:
                return result
        if failure.status == _CONFLICT:
            break
    raise failure or AssertionError("not reached")


def _may_have_succeeded(failure: KaggleError) -> bool:
    """Return True if Kaggle may have carried out a failed call: lost response, server error or conflict."""
    return not failure.refused and (failure.status in (0, _CONFLICT) or failure.status >= 500)


def _poll_until_found(find: Callable[[], _T | None]) -> _T | None:
    """Call `find` until it returns a result, or None after 45 seconds. Kaggle lists a change after some delay."""
    for pause in (0.0, *(3 * pause for pause in _CALL_PAUSES[:4])):
        time.sleep(pause)
        found = find()
        if found is not None:
            return found
    return None


def find_user() -> str:
    """Return the user name of the token's account.

    Raises:
        KaggleError: there is no token, or it has no user name.
    """
    user = _call_with_retries(_WHOAMI).user
    if not user:
        raise KaggleError("the token does not contain the user name", "", "Set KAGGLE_USERNAME as well")
    return user
