"""Send a submission to Kaggle once, wait for its score, and write both to the ledger."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from claris_kaggle.core.console import StatusLine, format_duration, log_info
from claris_kaggle.core.errors import KaggleError, name_few
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.ensembling.ledger import LedgerEntry, record_submission
from claris_kaggle.ensembling.submission_file import check_submission
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.client_answers import _ListedSubmission
from claris_kaggle.kaggle.kernel_source import commit_name

# Seconds: the maximum wait for a score, and the maximum delay until Kaggle lists a submission.
MAX_SCORE_WAIT, _MAX_LISTING_LAG = 2 * 3600.0, 600.0


def submit_file(
    path: Path,
    sample_ids: Sequence[str],
    ledger: Path,
    *,
    wait: float = MAX_SCORE_WAIT,
    poll: float = 10.0,
) -> dict[str, str]:
    """Check the file, submit it unless the same bytes were submitted before, and wait for its score.

    Args:
        path: the submission.
        sample_ids: ids of the sample submission.
        ledger: CSV file of all submissions.
        wait: seconds to wait for the score; 0 does not wait.
        poll: seconds between two requests for the score.
    Returns:
        The line of the ledger.
    Raises:
        TableError: the file is not a valid submission; nothing was sent.
        KaggleError: refused, over the daily limit, or scored as an error. The next call sends a file again that was
            scored as an error.
    """
    summary = check_submission(path, sample_ids)
    if summary.tie_remark:
        log_info(f"{path}: {summary.tie_remark}")
    push_token = f"claris-{summary.sha256[:16]}"
    origin = _read_submission_origin(path, summary.sha256)
    submissions = _find_earlier(push_token, ledger)
    failed = [submission.ref for submission in submissions if submission.status == "ERROR"]
    earlier = next((submission for submission in submissions if submission.ref not in failed), None)
    if earlier is None:
        if failed:
            log_info(f"{path}: submitted before, as {name_few(failed)}, and not scored; sending it again")
        _require_allowance()
        write_json(_attempt_file(ledger), {"mark": push_token, "time": time.time()})
        ref = _send_submission(path, f"{origin['text']} [{push_token}]", push_token, failed)
    else:
        ref = earlier.ref
        log_info(f"{path}: submitted before, as {ref}")
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) if earlier is None else "",
        "ref": str(ref),
        "file": str(path),
        "sha256": summary.sha256,
        "runs": origin["runs"],
        "commit": origin["commit"],
        **{name: origin[name] for name in ("oof_auc", "oof_low", "oof_high")},
        "status": "PENDING",
    }
    record_submission(ledger, LedgerEntry(**entry))
    _attempt_file(ledger).unlink(missing_ok=True)
    return _wait_for_score(entry, push_token, failed, ledger, wait=wait, poll=poll)


def _send_submission(path: Path, message: str, push_token: str, failed: Collection[int]) -> int:
    """Submit the file and return the submission's number. A lost response is found by the push token in the message.

    Args:
        failed: numbers of earlier submissions with the push token that are ignored.
    Raises:
        KaggleError: refused, not uploaded, or over the daily limit.
    """

    def attempt() -> int:
        answer = api._call_once(
            api._SUBMIT,
            deadline=api._PUSH_DEADLINE,
            path=str(path.absolute()),
            message=message,
            competition=api._COMPETITION,
        )
        if not answer.uploaded:
            reason = f" ({answer.message})" if answer.message else ""
            found = f"the submission could not be uploaded{reason}"
            raise KaggleError(found, "", "Run the same command again", retryable=True, refused=True)
        return answer.ref

    def find() -> int | None:
        found = _find_submission(push_token, failed)
        return None if found is None else found.ref

    ref = api._retry_attempt(attempt, find) or api._poll_until_found(find)
    if ref is None:
        hint = "Run the same command in a minute: it searches for the submission before it sends anything"
        raise KaggleError("Kaggle does not list the submission yet", "", hint)
    return ref


def _attempt_file(ledger: Path) -> Path:
    """Return the path of the file that records a submission attempt until Kaggle has confirmed it."""
    return ledger.with_name(f".{ledger.stem}.attempt.json")


def _find_earlier(push_token: str, ledger: Path) -> list[_ListedSubmission]:
    """Return the submissions with the push token. Retries if a recent attempt may not be listed yet."""
    path = _attempt_file(ledger)
    attempt = read_json(path) if path.exists() else {}
    if attempt.get("mark") != push_token or time.time() - attempt["time"] > _MAX_LISTING_LAG:
        return _find_submissions(push_token)
    log_info("an earlier call may have sent this file; searching for it")
    return api._poll_until_found(lambda: _find_submissions(push_token) or None) or []


def _find_submissions(push_token: str) -> list[_ListedSubmission]:
    """Return the submissions whose description has the push token."""
    found = api._call_with_retries(api._SUBMISSIONS, competition=api._COMPETITION)
    return [one for one in found if push_token in one.description]


def _find_submission(push_token: str, failed: Collection[int]) -> _ListedSubmission | None:
    """Return the submission whose description has the push token, ignoring those in `failed`; None without one."""
    return next((one for one in _find_submissions(push_token) if one.ref not in failed), None)


def _require_allowance() -> None:
    """Check before the upload that a submission is left today.

    Raises:
        KaggleError: none is left today.
    """
    limits = api._call_with_retries(api._LIMITS, competition=api._COMPETITION)
    if limits.allowed < 1 and limits.today > 0:  # after the deadline the answer may come without numbers
        found = f"today's submissions are used up ({limits.today} made)"
        raise KaggleError(found, "", "Run the same command after midnight UTC")


def _read_submission_origin(path: Path, sha256: str) -> dict[str, str]:
    """Return runs, commit and OOF AUC of a submission, from the JSON file beside it if its SHA-256 matches."""
    json_path = path.with_suffix(".json")
    origin = read_json(json_path) if json_path.exists() else {}
    if origin.get("sha256") != sha256:
        origin = {}
    runs, commit = " ".join(sorted(map(_mark_second_round, origin.get("runs", {}).items()))), commit_name()
    oof = origin.get("oof", {})
    values = [oof.get("auc"), *oof.get("auc_interval", [None, None])]
    score, low, high = ("" if value is None else f"{value:.5f}" for value in values)
    text = f"{runs or path.name} at {commit}" + (f", OOF AUC {score}" if score else "")
    oof_values = {"oof_auc": score, "oof_low": low, "oof_high": high}
    return {"runs": runs, "commit": commit, **oof_values, "text": text[:400]}


def _mark_second_round(run: tuple[str, Mapping[str, Any]]) -> str:
    """Return the name of a run, marked if it was trained with pseudo-labels."""
    name, origin = run
    return f"{name} (second round with pseudo-labels)" if (origin.get("config") or {}).get("extra_sha256") else name


def _wait_for_score(
    entry: dict[str, str], push_token: str, failed: Collection[int], ledger: Path, *, wait: float, poll: float
) -> dict[str, str]:
    """Return the ledger's line with its scores, or still pending after `wait` seconds. Retries temporary failures.

    Raises:
        KaggleError: Kaggle could not score the file.
    """
    start = time.monotonic()
    with StatusLine() as waiting:
        while True:
            found = None
            try:
                found = _find_submission(push_token, failed)
            except KaggleError as error:
                if not error.retryable:
                    raise
                log_info(f"{error.found}; checking again in {poll:.0f} s")
            waited = time.monotonic() - start
            if (found is not None and found.status != "PENDING") or waited >= wait:
                break
            waiting.show(f"submission {entry['ref']}: not scored yet, after {format_duration(waited)}")
            time.sleep(poll)
    if found is None or found.status == "PENDING":
        return entry
    entry |= {"public": found.public, "private": found.private, "status": found.status}
    record_submission(ledger, LedgerEntry(**entry))
    if found.status == "ERROR":
        hint = "Check the file first: the same command sends it again, which uses one of the day's submissions"
        raise KaggleError(f"Kaggle could not score the submission: {found.error}", "", hint)
    return entry
