"""Kaggle as this package sees it: each call under a deadline, every refusal an error, retries where they are safe.

The token is the client's own business: nothing here reads, keeps or prints it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claris_kaggle.console import say
from claris_kaggle.errors import KaggleError

COMPETITION = "histopathologic-cancer-detection"
DEADLINE = float(os.environ.get("CLARIS_KAGGLE_DEADLINE", "120"))
PUSH_DEADLINE = 300.0
DOWNLOAD_DEADLINE = 6 * 3600.0
# Seconds before the second, third ... try; a server's Retry-After is heeded up to the longest.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
LONGEST_PAUSE = 120.0
# Settings of the client that would change what it does, or print requests with their token.
UNWANTED = ("VERBOSE", "VERBOSE_OUTPUT", "KAGGLE_COMPETITION", "KAGGLE_PATH", "KAGGLE_PROXY")
LOGIN = (
    "Make one at kaggle.com/settings, under API, and put it into ~/.kaggle/kaggle.json or "
    "~/.kaggle/access_token, as Kaggle says there, or into KAGGLE_API_TOKEN"
)


def call(method: str, *, deadline: float = DEADLINE, **arguments: Any) -> dict[str, Any]:
    """The answer of one call of `kaggle_client`, tried once.

    Raises:
        KaggleError: refused, failed or not answered in time; `passing` says whether a later try may do better.
    """
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    command = [sys.executable, "-m", "claris_kaggle.kaggle_client", method]
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")) if part
    )
    try:
        done = subprocess.run(
            command, input=json.dumps(arguments), capture_output=True, text=True, timeout=deadline, env=environment
        )
    except subprocess.TimeoutExpired:
        text = f"Kaggle did not answer within {deadline:.0f} s"
        raise KaggleError(text, "", "Run the same command again", passing=True) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1][:200] if lines else f"exit code {done.returncode}"
        raise KaggleError(f"Kaggle's client failed ({reason})", "", "See claris --debug") from None
    if "failure" in answer:
        raise explain(method, answer)
    return dict(answer["answer"])


def explain(method: str, answer: dict[str, Any]) -> KaggleError:
    """The failure as an error with what to do about it."""
    text, status = answer.get("text", ""), answer.get("status", 0)
    said = f": {text}" if text else ""
    if answer["failure"] == "login":
        return KaggleError(text, "", LOGIN)
    if answer["failure"] == "network":
        return KaggleError(
            f"Kaggle could not be reached ({text})", "", "Look at the network, and run it again", passing=True
        )
    if answer["failure"] == "client":
        return KaggleError(f"Kaggle's client refused to {method}{said}", "", "")
    if status == 401:
        return KaggleError(f"Kaggle refused the token (401{said})", "a valid token is needed", LOGIN)
    if status == 403:
        mend = f"Accept the rules at kaggle.com/c/{COMPETITION}/rules, or check the name and the token"
        return KaggleError(f"Kaggle refused to {method} (403{said})", "", mend, status=status)
    if status == 404:
        return KaggleError(f"Kaggle does not know what was asked for (404{said})", "", "Check the name", status=status)
    passing = status == 429 or status >= 500
    mend = "Try again later" if passing else ""
    after = float(answer["after"]) if str(answer.get("after", "")).replace(".", "", 1).isdigit() else 0.0
    return KaggleError(
        f"Kaggle answered {status} to {method}{said}", "", mend, status=status, passing=passing, after=after
    )


def patiently(method: str, *, deadline: float = DEADLINE, **arguments: Any) -> dict[str, Any]:
    """The answer of a call that changes nothing, tried again with growing pauses while failures may pass."""
    return retry(lambda: call(method, deadline=deadline, **arguments))


def retry(
    attempt: Callable[[], dict[str, Any]], done: Callable[[], dict[str, Any] | None] | None = None
) -> dict[str, Any]:
    """The attempt's answer, tried again while failures may pass.

    Args:
        done: for an attempt that changes something: looks whether a failed one was carried out all
            the same, and returns its answer, or None when it was not.
    Raises:
        KaggleError: refused for good, or still failing after the last pause.
    """
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except KaggleError as error:
            if not error.passing:
                raise
            wait = min(max(pause or 0.0, error.after), LONGEST_PAUSE)
            found = done() if done else None
            if found is not None:
                return found
            if pause is None:
                raise
            say(f"{error.found}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("not reached")


def whoami() -> str:
    """The user name of the token's account.

    Raises:
        KaggleError: there is no token, or it has no user name.
    """
    user = str(patiently("whoami")["user"])
    if not user:
        raise KaggleError("the token does not tell the user name", "", "Set KAGGLE_USERNAME as well")
    return user


def push(folder: Path, ref: str, mark: str, *, timeout: int) -> int:
    """Push the kernel in the folder and return the version that it became.

    Args:
        ref: owner/slug, which the metadata name as well.
        mark: a text in the source that no other push has; by it a push whose answer got lost is found.
        timeout: seconds after which Kaggle stops the session.
    Raises:
        KaggleError: refused, or accepted without one of its inputs.
    """

    def pushed() -> dict[str, Any] | None:
        version = find_push(ref, mark)
        return None if version is None else {"version": version, "error": "", "refused": {}, "ref": ref, "url": ""}

    answer = retry(lambda: call("push", deadline=PUSH_DEADLINE, folder=str(folder.absolute()), timeout=timeout), pushed)
    if answer["error"]:
        passing = "session count" in answer["error"]
        mend = "Wait until another session ends" if passing else "Mend it and push again"
        raise KaggleError(f"Kaggle refused the kernel {ref}: {answer['error']}", "", mend, busy=passing)
    if answer["refused"]:
        names = "; ".join(f"{name} {', '.join(values)}" for name, values in answer["refused"].items())
        raise KaggleError(f"Kaggle took the kernel {ref} without some of its inputs ({names})", "", "Check their names")
    landed = "/".join((answer["ref"] or answer["url"]).rstrip("/").split("/")[-2:])
    if landed and landed.lower() != ref.lower():
        raise KaggleError(f"Kaggle put the kernel at {landed}", f"{ref} was asked for", "Check the title and the id")
    if answer["version"] < 1:
        raise KaggleError(f"Kaggle took the kernel {ref} and named no version", "", "Look at it on the web page")
    return int(answer["version"])


def find_push(ref: str, mark: str) -> int | None:
    """The version whose source has the mark, if it is the newest; None when there is no such."""
    try:
        found = patiently("kernel", ref=ref)
    except KaggleError as error:
        if error.status in (403, 404):
            return None  # Kaggle answers 403 for a kernel that is not there
        raise
    return int(found["version"]) if mark in found["source"] else None


def submit(path: Path, message: str, mark: str, competition: str = COMPETITION) -> int:
    """Submit the file and return the submission's number; `mark` in the message finds a lost answer again.

    Raises:
        KaggleError: refused, not uploaded, or over the daily limit.
    """

    def submitted() -> dict[str, Any] | None:
        found = find_submission(mark, competition)
        return None if found is None else {"ref": found["ref"], "uploaded": True, "message": ""}

    answer = retry(
        lambda: call(
            "submit", deadline=PUSH_DEADLINE, path=str(path.absolute()), message=message, competition=competition
        ),
        submitted,
    )
    found = None if answer["uploaded"] and answer["ref"] else find_submission(mark, competition)
    if found is not None:
        return int(found["ref"])
    if not answer["uploaded"]:
        raise KaggleError("the submission could not be uploaded", "", "Run the same command again", passing=True)
    if not answer["ref"]:
        raise KaggleError(f"Kaggle did not list the submission ({answer['message']})", "", "Look at the web page")
    return int(answer["ref"])


def find_submission(mark: str, competition: str = COMPETITION) -> dict[str, Any] | None:
    """The submission whose description has the mark."""
    found = patiently("submissions", competition=competition)["submissions"]
    return next((one for one in found if mark in one["description"]), None)


def require_allowance(competition: str = COMPETITION) -> None:
    """Refuse before anything is uploaded when today's submissions are used up.

    Raises:
        KaggleError: none is left today.
    """
    limits = patiently("limits", competition=competition)
    if limits["allowed"] < 1:
        found = f"today's submissions are used up ({limits['today']} made)"
        raise KaggleError(found, "", "Run the same command after midnight UTC")


def fetch_file(url: str, target: Path, *, limit: int, deadline: float = 600.0) -> None:
    """Fetch a plain address into the file, whole or with an error.

    Args:
        limit: bytes at most.
    Raises:
        KaggleError: refused, cut off, too large or too slow.
    """
    import requests

    start, size = time.monotonic(), 0
    try:
        with requests.get(url, stream=True, timeout=(20, 60)) as response, target.open("wb") as stream:
            if response.status_code != 200:
                passing = response.status_code == 429 or response.status_code >= 500
                text = f"{target.name}: the address answered {response.status_code}"
                raise KaggleError(text, "", "Try again later", status=response.status_code, passing=passing)
            for chunk in response.iter_content(1 << 20):
                size += len(chunk)
                if size > limit:
                    raise KaggleError(
                        f"{target.name}: larger than {limit:,} bytes", "", "It is not what the kernel wrote"
                    )
                if time.monotonic() - start > deadline:
                    raise KaggleError(
                        f"{target.name}: not fetched within {deadline:.0f} s", "", "Run it again", passing=True
                    )
                stream.write(chunk)
            length = response.headers.get("Content-Length")
            if length is not None and "Content-Encoding" not in response.headers and int(length) != size:
                raise KaggleError(
                    f"{target.name}: cut off at {size:,} of {length} bytes", "", "Run it again", passing=True
                )
    except requests.RequestException as error:
        raise KaggleError(
            f"{target.name}: not fetched ({type(error).__name__})", "", "Run it again", passing=True
        ) from error
