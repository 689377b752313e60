"""One kernel pushed once: its mark, the record of what was asked for, and the look for a push whose answer got lost."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claris_kaggle import kaggle_api
from claris_kaggle.errors import KaggleError, UsageError
from claris_kaggle.files import hold_lock, read_json, write_json
from claris_kaggle.kernels import Kernel
from claris_kaggle.stopping import parse_duration

RECORD = "kernels.json"
# Beyond the limit at which a session stops itself, for its end; Kaggle takes no more than its own longest.
SESSION_SLACK, LONGEST_SESSION = 1800.0, "12h"
PAGE = "https://www.kaggle.com/code"


def new_mark(name: str) -> str:
    """A text that no other push or submission has."""
    return f"{name}-{secrets.token_hex(6)}"


def push_kernel(folder: Path, mark: str, *, again: bool = False) -> Kernel:
    """Push the composed kernel, and return the version that it became.

    Args:
        mark: a text in the source that no other push has; by it a push whose answer got lost is found.
        again: this may have happened before: look for it first.
    Raises:
        KaggleError: refused, or taken without one of its inputs.
    """
    metadata = read_json(folder / "kernel-metadata.json")
    ref, script = str(metadata["id"]), (folder / str(metadata["code_file"])).read_text("utf-8")

    def look() -> dict[str, Any] | None:
        return find_push(ref, mark, metadata)

    def attempt() -> dict[str, Any]:
        return kaggle_api.call(
            "push",
            deadline=kaggle_api.PUSH_DEADLINE,
            folder=str(folder.absolute()),
            timeout=session_timeout(script),
        )

    answer = look() if again else None
    return Kernel(ref=ref, version=accept(ref, answer or kaggle_api.retry(attempt, look)), mark=mark)


def session_timeout(script: str) -> int:
    """Seconds after which Kaggle is to stop the session of this script; 0 leaves it to Kaggle."""
    limit = re.search(r"'time_limit': '([^']+)'", script)
    return int(min(parse_duration(limit.group(1)) + SESSION_SLACK, parse_duration(LONGEST_SESSION))) if limit else 0


def accept(ref: str, answer: dict[str, Any]) -> int:
    """The version that a push became.

    Raises:
        KaggleError: refused, or accepted without one of its inputs, under another name or without a version.
    """
    if answer["error"]:
        raise explain_refusal(ref, answer["error"])
    if answer["refused"]:
        names = "; ".join(f"{name} {', '.join(values)}" for name, values in answer["refused"].items())
        found = f"Kaggle took the kernel {ref} without some of its inputs ({names})"
        mend = f"Cancel it at {PAGE}/{ref}, check their names, and push it again"
        raise KaggleError(found, "it runs without them", mend, refused=True)
    landed = "/".join((answer["ref"] or answer["url"]).rstrip("/").split("/")[-2:])
    if landed and landed.lower() != ref.lower():
        mend = "Cancel it there, and check the title and the id"
        raise KaggleError(f"Kaggle put the kernel at {landed}", f"{ref} was asked for", mend, refused=True)
    if answer["version"] < 1:
        mend = "Look at it on the web page"
        raise KaggleError(f"Kaggle took the kernel {ref} and named no version", "", mend, refused=True)
    return int(answer["version"])


def explain_refusal(ref: str, reason: str) -> KaggleError:
    """What to do about a kernel that Kaggle did not take."""
    busy = "session count" in reason
    mend = "Mend it and push again"
    if busy:
        mend = "Wait until another session ends"
    elif "quota" in reason.lower():
        mend = "Run the same command when the week's quota begins anew; kaggle.com/settings says when"
    return KaggleError(f"Kaggle refused the kernel {ref}: {reason}", "", mend, busy=busy, refused=not busy)


def find_push(ref: str, mark: str, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """What a push answers, of the newest version if its source has the mark; None when there is no such.

    Args:
        metadata: of the kernel as it was pushed, which name its inputs.
    """
    try:
        found = kaggle_api.patiently("kernel", ref=ref)
    except KaggleError as error:
        if error.status in (403, 404):
            return None  # Kaggle answers 403 for a kernel that is not there
        raise
    if mark not in found["source"]:
        return None
    refused = lacking(metadata, found["sources"])
    return {"version": int(found["version"]), "error": "", "refused": refused, "ref": ref, "url": ""}


def lacking(wanted: dict[str, Any], found: dict[str, list[str]]) -> dict[str, list[str]]:
    """The inputs that were asked for and are not among those found, by kind; versions and capitals do not count.

    >>> lacking({"dataset_sources": ["me/Slides/2", "me/weights"]}, {"dataset_sources": ["me/slides"]})
    {'dataset_sources': ['me/weights']}
    """
    missing = {
        kind: [one for one in wanted.get(kind, []) if short(one) not in map(short, names)]
        for kind, names in found.items()
    }
    return {kind: names for kind, names in missing.items() if names}


def short(source: str) -> str:
    """Owner and name of an input, in small letters."""
    return "/".join(source.lower().split("/")[:2])


def remember(path: Path, kernel: Kernel, **about: Any) -> None:
    """Put the push into the record of pushes, over what was put down of it before, under a lock."""
    entry = {"ref": kernel.ref, "version": kernel.version, "mark": kernel.mark, **about}
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        known = [one for one in read_record(path) if one["mark"] != kernel.mark]
        write_json(path, {"kernels": [*known, entry]})


def forget(path: Path, mark: str) -> None:
    """Take a push that came to nothing out of the record."""
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        write_json(path, {"kernels": [one for one in read_record(path) if one["mark"] != mark]})


def read_record(path: Path) -> Sequence[dict[str, Any]]:
    """The pushes of the record, the newest last; one whose version is 0 is not known to have arrived."""
    return list(read_json(path)["kernels"]) if path.exists() else []


def unfinished(path: Path, asked: dict[str, Any]) -> str:
    """The mark of the newest push of this kernel, if it asked for the same and is not known to have arrived; or ""."""
    fitting = [one for one in read_record(path) if one["ref"] == asked["ref"]]
    same = bool(fitting) and not fitting[-1]["version"] and fitting[-1].get("asked") == asked
    return str(fitting[-1]["mark"]) if same else ""


def recall(path: Path, ref: str = "") -> Kernel:
    """The newest push in the record, or the newest of this kernel; Kaggle is asked whether an unfinished one arrived.

    Raises:
        UsageError: there is none, or it has not arrived.
    """
    fitting = [one for one in read_record(path) if ref in ("", one["ref"], one["ref"].split("/")[-1])]
    if not fitting:
        what = f"no push of {ref}" if ref else "no push"
        mend = "Name the --record of the folder that it was pushed from, or push first: claris push train"
        raise UsageError(f"{path}: {what} is recorded", "", mend)
    for one in reversed(fitting):
        kernel = Kernel(ref=one["ref"], version=one["version"], mark=one["mark"])
        if kernel.version:
            return kernel
        arrived = find_push(kernel.ref, kernel.mark, {})
        if arrived is not None:
            kernel = Kernel(ref=kernel.ref, version=arrived["version"], mark=kernel.mark)
            remember(path, kernel, job=one.get("job", ""))
            return kernel
        if not one.get("built"):
            break  # what was built only, to be read, hides no push before it
    mend = f"Push it: kaggle kernels push -p {one['built']}" if one.get("built") else "Run the same claris push again"
    raise UsageError(f"{one['ref']}: the push that {path} names has not arrived at Kaggle", "", mend)
