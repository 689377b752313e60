"""One kernel pushed once: its mark, the record of what was asked for, and the look for a push whose answer got lost."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from claris_kaggle.core.console import say
from claris_kaggle.core.errors import KaggleError, UsageError, name_few
from claris_kaggle.core.files import hold_lock, read_json, write_json
from claris_kaggle.core.time_limit import parse_duration
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.kernel_output import Kernel

RECORD = "kernels.json"
# Beyond the limit at which a session stops itself, for its end. Kaggle takes a limit below its own longest session.
SESSION_SLACK, LONGEST_SESSION, LONGEST_LIMIT = 1800.0, "12h", "11h59m"
LONGEST_SLUG = 50
# What an empty kernel answers, which the first push of its name left when it was refused.
EMPTY_KERNEL = "notebook not found"


def new_mark(name: str) -> str:
    """Return a text that no other push or submission has."""
    return f"{name}-{secrets.token_hex(6)}"


def fresh_slug(slug: str, mark: str) -> str:
    """Return a name that no push has had: the given one, and the end of the mark.

    >>> fresh_slug("claris-train", "claris-train-0123456789ab")
    'claris-train-89ab'
    """
    return f"{slug[: LONGEST_SLUG - 5].rstrip('-')}-{mark[-4:]}"


def push_kernel(folder: Path, mark: str, *, again: bool = False, optional: Sequence[str] = ()) -> Kernel:
    """Push the composed kernel, and return the version that it became.

    Args:
        mark: a text in the source that no other push has; by it a push whose answer got lost is found.
        again: this may have happened before: look for it first.
        optional: kernels whose output the session can do without, as that of an earlier session that failed.
    Raises:
        KaggleError: refused, or taken without one of its other inputs.
    """
    metadata = read_json(folder / "kernel-metadata.json")
    ref, script = str(metadata["id"]), (folder / str(metadata["code_file"])).read_text("utf-8")
    limit = session_timeout(script)

    def look() -> dict[str, Any] | None:
        return find_push(ref, mark, metadata)

    def attempt() -> dict[str, Any]:
        try:
            return api.call("push", deadline=api.PUSH_DEADLINE, folder=str(folder.absolute()), timeout=limit)
        except KaggleError as error:
            if is_busy(error.found):  # the same refusal, as an error instead of an answer
                raise explain_refusal(ref, error.found) from error
            raise

    answer = api.look_repeatedly(look) if again else None
    try:
        answer = answer or api.retry(attempt, look)
        if answer["version"] < 1 and not answer["error"]:
            answer = api.look_repeatedly(look) or answer
        version = accept(ref, {**answer, "refused": drop_optional(ref, answer["refused"], optional)})
    except KaggleError as error:
        # Any other refusal by an HTTP status. What was wrong with the token or the request is wrong under any name.
        if error.status == api.CONFLICT:
            mend = "Run the same command again: it takes another name"
            raise KaggleError(error.found, "", mend, status=error.status, refused=True, no_version=True) from error
        raise
    return Kernel(ref=ref, version=version, mark=mark, pushed=time.time(), limit=limit)


def session_timeout(script: str) -> int:
    """Return the seconds after which Kaggle is to stop the session of this script; 0 leaves it to Kaggle."""
    limit = re.search(r"'time_limit': '([^']+)'", script)
    return int(min(parse_duration(limit.group(1)) + SESSION_SLACK, parse_duration(LONGEST_LIMIT))) if limit else 0


def accept(ref: str, answer: dict[str, Any]) -> int:
    """Return the version that a push became.

    Raises:
        KaggleError: refused, or accepted without one of its inputs, under another name or without a version.
    """
    if answer["error"]:
        raise explain_refusal(ref, answer["error"])
    if answer["refused"]:
        raise explain_lost_inputs(ref, answer["refused"])
    landed = find_place(answer["ref"]) or find_place(answer["url"])
    if landed and landed.lower() != ref.lower():
        mend = "Cancel it there, and check the title and the id"
        raise KaggleError(f"Kaggle put the kernel at {landed}", f"{ref} was asked for", mend, refused=True)
    if answer["version"] < 1:
        mend = f"Run the same command again: it looks for the version first; or look at {api.CODE_PAGE}/{ref}"
        raise KaggleError(f"Kaggle's answer to the push of {ref} names no version", "a number is expected", mend)
    return int(answer["version"])


def drop_optional(ref: str, refused: dict[str, list[str]], optional: Sequence[str]) -> dict[str, list[str]]:
    """Return the refused inputs without the optional kernels, and say which of those the session goes without."""
    known = {short(one) for one in optional}
    lost = {name for names in refused.values() for name in names if short(name) in known}
    if lost:
        say(f"{ref}: Kaggle does not attach the output of {name_few(lost)}; the session trains those folds again")
    kept = {kind: [name for name in names if name not in lost] for kind, names in refused.items()}
    return {kind: names for kind, names in kept.items() if names}


def find_place(address: str) -> str:
    """Return the owner/slug of a kernel's reference or address; an empty text where there is none in it.

    >>> find_place("/code/me/claris-train"), find_place("https://www.kaggle.com/me/claris-train?scriptVersionId=7")
    ('me/claris-train', 'me/claris-train')
    """
    parts = [part for part in urlsplit(address).path.split("/") if part]
    parts = parts[parts.index("code") + 1 :] if "code" in parts else parts
    return "/".join(parts[:2]) if len(parts) >= 2 else ""


def explain_lost_inputs(ref: str, refused: dict[str, list[str]]) -> KaggleError:
    """Return what to do about a kernel that runs without some of its inputs."""
    names = "; ".join(f"{name} {', '.join(values)}" for name, values in refused.items())
    found = f"Kaggle took the kernel {ref} without some of its inputs ({names})"
    cancel = f"cancel the kernel at {api.CODE_PAGE}/{ref}"
    competitions = refused.get("invalid_competition_sources") or refused.get("competition_sources") or []
    if competitions:
        page = api.rules_page(competitions[0])
        mend = f"The rules were probably not accepted: accept them at {page}, {cancel}, and run the same command again"
    else:
        mend = f"Check their names, {cancel}, and run the same command again"
    return KaggleError(found, "it runs without them", mend, refused=True)


def is_busy(reason: str) -> bool:
    """Return True if a refusal passes when another session ends: too many at once, or too many hours reserved.

    >>> is_busy("Maximum batch GPU session count of 2 reached."), is_busy("Kernel source too large")
    (True, False)
    """
    reason = reason.lower()
    return "session count" in reason or ("projected" in reason and "quota" in reason)


def explain_refusal(ref: str, reason: str) -> KaggleError:
    """Return what to do about a kernel that Kaggle did not take."""
    found, mend = f"Kaggle refused the kernel {ref}: {reason.rstrip('.')}", "Correct it and push again"
    said = reason.lower()
    if is_busy(reason):
        mend = "Run the same command again when another session has ended"
    elif EMPTY_KERNEL in said:
        mend = "A refused push has left the name empty: run the same command again, which takes another name"
    elif "quota" in said:
        mend = f"Run the same command when the week's quota begins anew; {api.SETTINGS_PAGE} says when"
    elif "phone" in said or "verif" in said:
        mend = f"Verify the phone number at {api.SETTINGS_PAGE}, and run the same command again"
    elif "rules" in said:
        mend = f"Accept the rules at {api.rules_page()}, and run the same command again"
    busy = is_busy(reason)
    return KaggleError(found, "", mend, busy=busy, refused=not busy, no_version=True)


def is_name_trouble(error: KaggleError) -> bool:
    """Return True if a push under another name would do."""
    return error.status == api.CONFLICT or EMPTY_KERNEL in error.found.lower()


def find_push(ref: str, mark: str, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a push answers, of the newest version if its source has the mark; None when there is no such.

    Args:
        metadata: of the kernel as it was pushed, which name its inputs.
    """
    found = read_newest(ref)
    if mark not in found.get("source", ""):
        return None
    refused = lacking(metadata, found["sources"])
    return {"version": int(found["version"]), "error": "", "refused": refused, "ref": ref, "url": ""}


def read_newest(ref: str) -> dict[str, Any]:
    """Return number, source and inputs of a kernel's newest version; nothing where the kernel has none.

    Raises:
        KaggleError: Kaggle does not answer.
    """

    def ask() -> dict[str, Any]:
        try:
            return api.call("kernel", ref=ref)
        except KaggleError as error:
            # Kaggle answers 403 for a kernel that is not there, and 500 for one that is empty.
            if error.status in (403, 404) or (error.status >= 500 and not has_session(ref)):
                return {}
            raise

    return api.retry(ask)


def has_session(ref: str) -> bool:
    """Return False if the kernel has no first version.

    Raises:
        KaggleError: Kaggle does not answer.
    """
    try:
        api.call("status", ref=ref, version=1)
    except KaggleError as error:
        if error.status in (403, 404):
            return False
        raise
    return True


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
    entry = {**dataclasses.asdict(kernel), **about}
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        known = [one for one in read_record(path) if one["mark"] != kernel.mark]
        write_json(path, {"kernels": [*known, entry], "empty": read_empty(path)})


def forget(path: Path, mark: str, *, empty: str = "") -> None:
    """Take a push that came to nothing out of the record.

    Args:
        empty: the base name to take no more, because the refused push left an empty kernel of it.
    """
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        known = [one for one in read_record(path) if one["mark"] != mark]
        write_json(path, {"kernels": known, "empty": sorted({*read_empty(path), *([empty] if empty else [])})})


def read_record(path: Path) -> Sequence[dict[str, Any]]:
    """Return the pushes of the record, the newest last; one whose version is 0 is not known to have arrived."""
    return list(read_json(path)["kernels"]) if path.exists() else []


def read_empty(path: Path) -> Sequence[str]:
    """Return the kernels (owner/slug) of which a refused first push may have left an empty one."""
    return list(read_json(path).get("empty", [])) if path.exists() else []


def has_version(path: Path, ref: str) -> bool:
    """Return True if the record has a push of this kernel that arrived."""
    return any(one["ref"] == ref and one["version"] for one in read_record(path))


def unfinished(path: Path, asked: dict[str, Any]) -> tuple[str, str]:
    """Return mark and name of the newest push, if it asked for the same and is not known to have arrived; or ""s."""
    fitting = [one for one in read_record(path) if asked["ref"] in (one["ref"], one.get("asked", {}).get("ref"))]
    same = bool(fitting) and not fitting[-1]["version"] and fitting[-1].get("asked") == asked
    return (str(fitting[-1]["mark"]), str(fitting[-1]["ref"])) if same else ("", "")


def recall(path: Path, ref: str = "") -> Kernel:
    """Return the newest push in the record, or of this kernel; Kaggle is asked whether an unfinished one arrived.

    Raises:
        UsageError: there is none, or it has not arrived.
    """
    fitting = [one for one in read_record(path) if ref in ("", one["ref"], one["ref"].split("/")[-1])]
    if not fitting:
        what = f"no push of {ref}" if ref else "no push"
        mend = "Name the --record of the folder that it was pushed from, or push first: claris push train"
        raise UsageError(f"{path}: {what} is recorded", "", mend)
    for one in reversed(fitting):
        known = {field.name for field in dataclasses.fields(Kernel)} & one.keys()
        kernel = Kernel(**{name: one[name] for name in known})
        if kernel.version:
            return kernel
        arrived = find_push(kernel.ref, kernel.mark, {})
        if arrived is not None:
            kernel = dataclasses.replace(kernel, version=arrived["version"])
            remember(path, kernel, job=one.get("job", ""))
            return kernel
        if not one.get("built"):
            break  # what was built only, to be read, hides no push before it
    mend = f"Push it: kaggle kernels push -p {one['built']}" if one.get("built") else "Run the same claris push again"
    raise UsageError(f"{one['ref']}: the push that {path} names has not arrived at Kaggle", "", mend)
