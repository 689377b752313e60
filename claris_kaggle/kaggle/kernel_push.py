"""Push a kernel exactly once: push tokens, the record of pushes, and the search for a push whose response was lost."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import KaggleError, UsageError, name_few
from claris_kaggle.core.files import hold_lock, read_json, write_json
from claris_kaggle.core.time_limit import parse_duration
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.client_answers import _KernelSource, _PushAnswer
from claris_kaggle.kaggle.kernel_output import Kernel

_PUSH_RECORD = "kernels.json"
# Seconds that a session gets after its own time limit, to end. Kaggle accepts only limits below its maximum of 12 h.
_SESSION_SLACK, MAX_SESSION_TEXT, _MAX_LIMIT_TEXT = 1800.0, "12h", "11h59m"
_MAX_SLUG_LENGTH = 50
# Kaggle's answer for an empty kernel. A refused first push leaves one.
_EMPTY_KERNEL = "notebook not found"


@dataclass(frozen=True, kw_only=True)
class _RecordedPush:
    """An entry in the record of pushes.

    Attributes:
        kernel: the pushed kernel; its version is 0 until Kaggle has confirmed the push.
        job: of the kernel.
        base: requested owner/slug of a confirmed push, without an added suffix.
        built: folder of a kernel that was only built.
        asked: the arguments of `claris push`; equal arguments are the same push. Empty once it is confirmed.
    """

    kernel: Kernel
    job: str
    base: str
    built: str
    asked: Mapping[str, object]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the stored entry."""
        texts = {name: stored.get(name, "") for name in ("job", "base", "built")}
        return cls(kernel=Kernel.from_json(stored), asked=stored.get("asked", {}), **texts)


def new_push_token(name: str) -> str:
    """Return a unique push token: the name and 12 random hexadecimal digits."""
    return f"{name}-{secrets.token_hex(6)}"


def _unused_slug(slug: str, push_token: str) -> str:
    """Return an unused slug: the given one and the end of the push token.

    >>> _unused_slug("claris-train", "claris-train-0123456789ab")
    'claris-train-89ab'
    """
    return f"{slug[: _MAX_SLUG_LENGTH - 5].rstrip('-')}-{push_token[-4:]}"


def _push_kernel(folder: Path, push_token: str, *, search_first: bool = False, optional: Sequence[str] = ()) -> Kernel:
    """Push the composed kernel, and return the version that Kaggle created.

    Args:
        folder: holds the script and its metadata.
        push_token: unique text in the source, by which a push is found whose response was lost.
        search_first: an earlier call may have sent this push: search for it first.
        optional: kernels whose output the session does not require, such as the output of a failed session.
    Raises:
        KaggleError: refused, or accepted without one of the required inputs.
    """
    metadata = read_json(folder / "kernel-metadata.json")
    inputs = {kind: names for kind, names in metadata.items() if kind.endswith("_sources")}
    ref, script = str(metadata["id"]), (folder / str(metadata["code_file"])).read_text("utf-8")
    limit = _session_timeout(script)

    def find_push() -> _PushAnswer | None:
        return _find_push(ref, push_token, inputs)

    def attempt() -> _PushAnswer:
        try:
            return api._call_once(api._PUSH, deadline=api._PUSH_DEADLINE, folder=str(folder.absolute()), timeout=limit)
        except KaggleError as error:
            if _is_session_limit(error.found):  # the same refusal, as an error instead of an answer
                raise _explain_refusal(ref, error.found) from error
            raise

    answer = api._poll_until_found(find_push) if search_first else None
    try:
        answer = answer or api._retry_attempt(attempt, find_push)
        if answer.version < 1 and not answer.error:
            answer = api._poll_until_found(find_push) or answer
        refused = _without_optional_inputs(ref, answer.refused, optional)
        version = _check_push_response(ref, dataclasses.replace(answer, refused=refused))
    except KaggleError as error:
        # A conflict concerns the name of the kernel. Other errors would occur with any name.
        if error.status == api._CONFLICT:
            hint = "Run the same command again: it uses another name"
            raise KaggleError(error.found, "", hint, status=error.status, refused=True, no_version=True) from error
        raise
    return Kernel(ref=ref, version=version, push_token=push_token, pushed=time.time(), limit=limit)


def _session_timeout(script: str) -> int:
    """Return the time limit to send to Kaggle for this script, in seconds; 0 for Kaggle's default."""
    limit = re.search(r"'time_limit': '([^']+)'", script)
    return int(min(parse_duration(limit.group(1)) + _SESSION_SLACK, parse_duration(_MAX_LIMIT_TEXT))) if limit else 0


def _check_push_response(ref: str, answer: _PushAnswer) -> int:
    """Return the version that a push created.

    Raises:
        KaggleError: refused, or accepted without one of its inputs, under another name or without a version.
    """
    if answer.error:
        raise _explain_refusal(ref, answer.error)
    if answer.refused:
        raise _explain_lost_inputs(ref, answer.refused)
    actual_ref = _parse_kernel_ref(answer.ref) or _parse_kernel_ref(answer.url)
    if actual_ref and actual_ref.lower() != ref.lower():
        hint = "Cancel it there, then check the title and the id"
        raise KaggleError(f"Kaggle put the kernel at {actual_ref}", f"expected {ref}", hint, refused=True)
    if answer.version < 1:
        hint = f"Run the same command again: it searches for the version first; or see {api._CODE_PAGE}/{ref}"
        raise KaggleError(f"Kaggle's response to the push of {ref} has no version number", "expected a number", hint)
    return answer.version


def _without_optional_inputs(
    ref: str, refused: Mapping[str, list[str]], optional: Sequence[str]
) -> Mapping[str, list[str]]:
    """Return the refused inputs without the optional kernels. Logs the optional kernels that were refused."""
    optional_names = {_shorten_source(source) for source in optional}
    dropped = {name for names in refused.values() for name in names if _shorten_source(name) in optional_names}
    if dropped:
        log_info(
            f"{ref}: Kaggle does not attach the output of {name_few(dropped)}; the session trains those folds again"
        )
    remaining = {kind: [name for name in names if name not in dropped] for kind, names in refused.items()}
    return {kind: names for kind, names in remaining.items() if names}


def _parse_kernel_ref(address: str) -> str:
    """Return owner/slug from a kernel's reference or URL; an empty string if it has none.

    >>> _parse_kernel_ref("/code/me/claris-train"), _parse_kernel_ref("https://www.kaggle.com/me/claris-train?scriptVersionId=7")
    ('me/claris-train', 'me/claris-train')
    """
    parts = [part for part in urlsplit(address).path.split("/") if part]
    parts = parts[parts.index("code") + 1 :] if "code" in parts else parts
    return "/".join(parts[:2]) if len(parts) >= 2 else ""


def _explain_lost_inputs(ref: str, refused: Mapping[str, list[str]]) -> KaggleError:
    """Return the error for a kernel that runs without some of its inputs."""
    names = "; ".join(f"{name} {', '.join(values)}" for name, values in refused.items())
    found = f"Kaggle accepted the kernel {ref} without some of its inputs ({names})"
    cancel = f"cancel the kernel at {api._CODE_PAGE}/{ref}"
    competitions = refused.get("invalid_competition_sources") or refused.get("competition_sources") or []
    if competitions:
        page = api._rules_page(competitions[0])
        hint = f"The rules were probably not accepted: accept them at {page}, {cancel}, and run the same command again"
    else:
        hint = f"Check their names, {cancel}, and run the same command again"
    return KaggleError(found, "it runs without them", hint, refused=True)


def _is_session_limit(reason: str) -> bool:
    """Return True if the refusal lasts only until another session ends: too many sessions or reserved hours.

    >>> _is_session_limit("Maximum batch GPU session count of 2 reached."), _is_session_limit("Kernel source too large")
    (True, False)
    """
    reason = reason.lower()
    return "session count" in reason or ("projected" in reason and "quota" in reason)


def _explain_refusal(ref: str, reason: str) -> KaggleError:
    """Return the error for a refused kernel, with a hint that says what to do."""
    found, hint = f"Kaggle refused the kernel {ref}: {reason.rstrip('.')}", "Correct it and push again"
    text = reason.lower()
    if _is_session_limit(reason):
        hint = "Run the same command again when another session has ended"
    elif _EMPTY_KERNEL in text:
        hint = "The refused push left an empty kernel of this name: run the same command again, which uses another name"
    elif "quota" in text:
        hint = f"Run the same command when the weekly quota resets; {api._SETTINGS_PAGE} says when"
    elif "phone" in text or "verif" in text:
        hint = f"Verify the phone number at {api._SETTINGS_PAGE}, and run the same command again"
    elif "rules" in text:
        hint = f"Accept the rules at {api._rules_page()}, and run the same command again"
    session_limit = _is_session_limit(reason)
    return KaggleError(found, "", hint, session_limit=session_limit, refused=not session_limit, no_version=True)


def _is_quota_used(error: KaggleError) -> bool:
    """Return True if Kaggle refused a push because the GPU hours of the week are used up."""
    return error.refused and "quota" in error.found.lower()


def _needs_new_name(error: KaggleError) -> bool:
    """Return True if a push under another name may succeed."""
    return error.status == api._CONFLICT or _EMPTY_KERNEL in error.found.lower()


def _find_push(ref: str, push_token: str, inputs: Mapping[str, list[str]]) -> _PushAnswer | None:
    """Return the push response for the newest version if its source has the push token; else None.

    Args:
        inputs: of the kernel as it was pushed, by their names in the metadata.
    """
    found = _read_newest(ref)
    if found is None or push_token not in found.source:
        return None
    return _PushAnswer(version=found.version, refused=_find_missing_inputs(inputs, found.sources), ref=ref)


def _read_newest(ref: str) -> _KernelSource | None:
    """Return number, source and inputs of a kernel's newest version; None if it has none.

    Raises:
        KaggleError: Kaggle does not answer.
    """

    def request() -> _KernelSource | None:
        try:
            return api._call_once(api._KERNEL, ref=ref)
        except KaggleError as error:
            # Kaggle answers 403 for a kernel that is not there, and 500 for one that is empty.
            if error.status in (403, 404) or (error.status >= 500 and not _has_session(ref)):
                return None
            raise

    return api._retry_attempt(request)


def _has_session(ref: str) -> bool:
    """Return True if the kernel has a version 1.

    Raises:
        KaggleError: Kaggle does not answer.
    """
    try:
        api._call_once(api._STATUS, ref=ref, version=1)
    except KaggleError as error:
        if error.status in (403, 404):
            return False
        raise
    return True


def _find_missing_inputs(
    requested: Mapping[str, list[str]], attached: Mapping[str, list[str]]
) -> Mapping[str, list[str]]:
    """Return the requested inputs that are not attached, by kind. Ignores versions and case.

    >>> _find_missing_inputs({"dataset_sources": ["me/Slides/2", "me/weights"]}, {"dataset_sources": ["me/slides"]})
    {'dataset_sources': ['me/weights']}
    """
    missing = {
        kind: [one for one in requested.get(kind, []) if _shorten_source(one) not in map(_shorten_source, names)]
        for kind, names in attached.items()
    }
    return {kind: names for kind, names in missing.items() if names}


def _shorten_source(source: str) -> str:
    """Return owner and name of an input, in lower case."""
    return "/".join(source.lower().split("/")[:2])


def record_push(path: Path, kernel: Kernel, **about: object) -> None:
    """Add the push to the record of pushes under a lock. Replaces an earlier entry of the same push token."""
    entry = {**kernel.to_json(), **about}
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        others = [other for other in _read_entries(path) if other["mark"] != kernel.push_token]
        write_json(path, {"kernels": [*others, entry], "empty": _read_empty_kernels(path)})


def _delete_push(path: Path, push_token: str, *, empty: str) -> None:
    """Remove a refused push from the record.

    Args:
        path: the record.
        push_token: of the push.
        empty: base name that must not be used again, because the refused push may have left an empty kernel of it;
            empty for none.
    """
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        others = [other for other in _read_entries(path) if other["mark"] != push_token]
        write_json(
            path, {"kernels": others, "empty": sorted({*_read_empty_kernels(path), *([empty] if empty else [])})}
        )


def _read_entries(path: Path) -> list[dict[str, object]]:
    """Return the entries of the record as they are stored, newest last."""
    return list(read_json(path)["kernels"]) if path.exists() else []


def _read_pushes(path: Path) -> Sequence[_RecordedPush]:
    """Return the recorded pushes, newest last. Version 0 means that Kaggle has not confirmed the push."""
    return [_RecordedPush.from_json(one) for one in _read_entries(path)]


def _read_empty_kernels(path: Path) -> Sequence[str]:
    """Return the kernels (owner/slug) that a refused first push may have left empty."""
    return list(read_json(path).get("empty", [])) if path.exists() else []


def _has_version(path: Path, ref: str) -> bool:
    """Return True if the record has a confirmed push of this kernel."""
    return any(one.kernel.ref == ref and one.kernel.version for one in _read_pushes(path))


def choose_kernel_name(record: Path, requested: str, push_token: str) -> str:
    """Return the kernel's owner/slug: the requested one, or another if a refused push left that one empty.

    Args:
        record: the record of pushes.
        requested: the requested owner/slug.
        push_token: of the push.
    """
    if requested not in _read_empty_kernels(record) or _has_version(record, requested):
        return requested
    confirmed = [push.kernel.ref for push in _read_pushes(record) if push.base == requested and push.kernel.version]
    user, slug = requested.split("/")
    ref = confirmed[-1] if confirmed else f"{user}/{_unused_slug(slug, push_token)}"
    log_info(f"{requested}: a refused push may have left an empty kernel of this name; using {ref}")
    return ref


def push_recorded(folder: Path, kernel: Kernel, requested: str, record: Path, *, search_first: bool) -> Kernel:
    """Push a kernel that is in the record, and return its version. A refused push is removed from the record.

    Args:
        folder: holds the script and its metadata.
        kernel: as recorded before the push.
        requested: the requested name, without an added suffix.
        record: the record of pushes.
        search_first: as in `_push_kernel`.
    Raises:
        KaggleError: refused, or not confirmed.
    """
    try:
        return _push_kernel(folder, kernel.push_token, search_first=search_first)
    except KaggleError as error:
        if error.refused or error.session_limit:
            empty = error.no_version and not _has_version(record, kernel.ref)
            _delete_push(record, kernel.push_token, empty=requested if empty else "")
        raise


def find_pending_push(path: Path, arguments: Mapping[str, object]) -> tuple[str, str]:
    """Return token and name of the newest push if it is unconfirmed and has these arguments; else empty strings."""
    matching = [push for push in _read_pushes(path) if arguments["ref"] in (push.kernel.ref, push.asked.get("ref"))]
    same = bool(matching) and not matching[-1].kernel.version and matching[-1].asked == arguments
    return (matching[-1].kernel.push_token, matching[-1].kernel.ref) if same else ("", "")


def find_recorded_push(path: Path, ref: str = "") -> Kernel:
    """Return the newest recorded push, or the newest of this kernel. Asks Kaggle about an unconfirmed push.

    Raises:
        UsageError: there is none, or it did not reach Kaggle.
    """
    matching = [push for push in _read_pushes(path) if ref in ("", push.kernel.ref, push.kernel.ref.split("/")[-1])]
    if not matching:
        what = f"no push of {ref}" if ref else "no push"
        hint = "Give the --record of that push, or push first: claris push train"
        raise UsageError(f"{path}: {what} is recorded", "", hint)
    for push in reversed(matching):
        kernel = push.kernel
        if kernel.version:
            return kernel
        found = _find_push(kernel.ref, kernel.push_token, {})
        if found is not None:
            kernel = dataclasses.replace(kernel, version=found.version)
            record_push(path, kernel, job=push.job)
            return kernel
        if not push.built:
            break  # an entry of a kernel that was only built does not hide earlier pushes
    hint = f"Push it: kaggle kernels push -p {push.built}" if push.built else "Run the same claris push again"
    raise UsageError(f"{push.kernel.ref}: the push that {path} names did not reach Kaggle", "", hint)
