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
from claris_kaggle.files import explain as explain_disk

COMPETITION = "histopathologic-cancer-detection"
DEADLINE = float(os.environ.get("CLARIS_KAGGLE_DEADLINE", "120"))
PUSH_DEADLINE = 300.0
DOWNLOAD_DEADLINE = 6 * 3600.0
# Seconds before the second, third ... try; a server's Retry-After is heeded up to the longest.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
LONGEST_PAUSE = 120.0
# Settings of the client that would change what it does, or print requests with their token.
UNWANTED = ("VERBOSE", "VERBOSE_OUTPUT", "KAGGLE_COMPETITION", "KAGGLE_PATH", "KAGGLE_PROXY", "KAGGLE_TOKEN")
# What Kaggle is asked to do by each call, as in "Kaggle refused to ...".
PHRASES = {
    "whoami": "say whose token it is",
    "push": "take the kernel",
    "kernel": "show the kernel",
    "status": "tell how the session is doing",
    "outputs": "list the session's output",
    "submit": "take the submission",
    "submissions": "list the submissions",
    "limits": "tell how many submissions are left",
    "quota": "tell the GPU hours",
    "competition": "show the competition",
    "running_log": "show the session's log",
    "delete": "delete the kernel",
    "status_of_label": "tell how the session is doing",
    "download_all": "send the competition's files",
    "download_one": "send a file of the competition",
}
LOGIN = (
    "Make one at kaggle.com/settings, under API, and put it into ~/.kaggle/kaggle.json or "
    "~/.kaggle/access_token, as Kaggle says there, or into KAGGLE_API_TOKEN"
)


def call(method: str, *, deadline: float = DEADLINE, **arguments: Any) -> dict[str, Any]:
    """The answer of one call of `kaggle_client`, tried once.

    Raises:
        KaggleError: refused, failed or not answered in time; `passing` says whether a later try may do better.
        DiskError: the client could not write what it fetched.
    """
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    # -P: a kaggle.py in the user's own folder is not the client.
    command = [sys.executable, "-P", "-m", "claris_kaggle.kaggle_client", method]
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
        mend = "Put --debug at the end of the command to see all that it said"
        raise KaggleError(f"Kaggle's client failed ({reason})", "", mend) from RuntimeError(done.stderr[-4000:])
    if answer.get("failure") == "disk":
        raise explain_disk(OSError(answer["errno"], answer["text"]), arguments.get("folder", "the disk"))
    if "failure" in answer:
        raise explain(method, answer)
    return dict(answer["answer"])


def explain(method: str, answer: dict[str, Any]) -> KaggleError:
    """The failure as an error with what to do about it."""
    text, status = answer.get("text", ""), answer.get("status", 0)
    said, asked = f": {text}" if text else "", PHRASES[method]
    if answer["failure"] == "login":
        return KaggleError(text, "", LOGIN)
    if answer["failure"] == "network":
        return KaggleError(
            f"Kaggle could not be reached ({text})", "", "Look at the network, and run it again", passing=True
        )
    if answer["failure"] == "client":
        return KaggleError(f"Kaggle's client did not {asked}{said}", "", "")
    if answer["failure"] == "storage":
        found = f"the address that Kaggle named did not {asked} ({status})"
        return KaggleError(
            found, "", "Run the same command again: it is given a new address", status=status, passing=True
        )
    if status == 401:
        return KaggleError(f"Kaggle refused the token (401{said})", "a valid token is needed", LOGIN)
    if status == 403:
        mend = f"Accept the rules at kaggle.com/c/{COMPETITION}/rules, or check the name and the token"
        return KaggleError(f"Kaggle refused to {asked} (403{said})", "", mend, status=status)
    if status == 404:
        return KaggleError(f"Kaggle does not know what was asked for (404{said})", "", "Check the name", status=status)
    passing = status == 429 or status >= 500
    mend = "Try again later" if passing else ""
    after = float(answer["after"]) if str(answer.get("after", "")).replace(".", "", 1).isdigit() else 0.0
    return KaggleError(
        f"Kaggle answered {status} and did not {asked}{said}", "", mend, status=status, passing=passing, after=after
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
            the same, and returns its answer, or None when it was not. It looks after the pause: a server
            may carry out what it has just failed to answer.
    Raises:
        KaggleError: refused for good, or still failing after the last pause.
    """
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except KaggleError as error:
            if not error.passing:
                raise
            if pause is not None:
                wait = min(max(pause, error.after), LONGEST_PAUSE)
                say(f"{error.found}; trying again in {wait:.0f} s")
                time.sleep(wait)
            found = done() if done else None
            if found is not None:
                return found
            if pause is None:
                raise
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
                # 403: the address was good for a while only; another run is given a new one.
                passing = response.status_code in (403, 429) or response.status_code >= 500
                text = f"{target.name}: the address answered {response.status_code}"
                raise KaggleError(text, "", "Run it again", status=response.status_code, passing=passing)
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
