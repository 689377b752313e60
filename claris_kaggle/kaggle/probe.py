"""Rehearse a launch on the user's account with a private CPU script that runs for a few seconds.

Kaggle's responses and the contents of its image are written to a JSON file for bug reports, without names or tokens.
"""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from claris_kaggle.core.console import StatusLine, format_duration, log_info
from claris_kaggle.core.errors import ClarisError, KaggleError
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.kaggle import api, kernel_output, kernel_push, session_progress, wire_log
from claris_kaggle.kaggle.kernel_output import Kernel
from claris_kaggle.kaggle.kernel_source import KernelSettings, compose_kernel
from claris_kaggle.kaggle.machine import _Machine
from claris_kaggle.kaggle.session import _PROBE_FILE
from claris_kaggle.version import __version__

_SCHEMA = 1
# Host from which a training session downloads its starting weights.
_TEST_ADDRESS = "huggingface.co:443"
_MAX_PROBE_SECONDS = 20 * 60.0
# Package versions of Kaggle's image that claris is tested with.
_TESTED_VERSIONS = {
    "torch": "2.10", "torchvision": "0.25", "timm": "1.0.26", "albumentations": "2.0.8", "numpy": "2.0.2",
    "pandas": "2.2.2", "scikit-learn": "1.6.1", "joblib": "1.5.3",
}  # fmt: skip


@dataclass
class _Step:
    """One call of the rehearsal.

    Attributes:
        name: the request.
        seconds: its duration.
        result: the response, in one line.
        failed: True if Kaggle refused it.
    """

    name: str
    seconds: float
    result: str
    failed: bool = False


@dataclass
class _Probe:
    """The state of a rehearsal.

    Attributes:
        user: name of the account, which is not written to the record.
        ref: the kernel, as owner/slug.
        steps: the calls, in order.
        machine: the session's description of its machine; None if there is none.
        deleted: True if the kernel no longer exists.
        error: reason for an early end; empty if there was none.
    """

    user: str = ""
    ref: str = ""
    steps: list[_Step] = field(default_factory=list)
    machine: _Machine | None = None
    deleted: bool = False
    error: str = ""


def _run_probe(path: Path, *, poll: float) -> _Probe:
    """Rehearse a launch with a CPU script, delete its kernel, and write the record.

    Args:
        path: JSON file of the record, which is always written.
        poll: seconds between two status requests.
    Returns:
        The rehearsal; `error` is the reason for an early end.
    """
    probe = _Probe()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with tempfile.TemporaryDirectory() as temporary:
        record = Path(temporary) / "wire.jsonl"
        with wire_log._recording(record):
            try:
                _rehearse(probe, Path(temporary), poll)
            except ClarisError as error:
                probe.error = " ".join(str(error).split())
            finally:
                _remove_kernel(probe)
                _write_record(path, probe, started, wire_log._read_exchanges(record))
    return probe


def _rehearse(probe: _Probe, folder: Path, poll: float) -> None:
    """Push the script, wait for its session, and read its log and output.

    Raises:
        KaggleError: a step failed.
    """
    with _timed(probe, "account") as record_result:
        probe.user = api.find_user()
        record_result("logged in")
    push_token = kernel_push.new_push_token("probe")
    slug = f"claris-probe-{secrets.token_hex(3)}"
    settings = KernelSettings(flags=(_TEST_ADDRESS,))
    ref = compose_kernel("probe", folder / "script", settings, user=probe.user, slug=slug, push_token=push_token)
    log_info(f"pushing the private kernel {ref}; it is deleted at the end")
    with _timed(probe, "push") as record_result:
        probe.ref = ref  # from here on there may be a kernel to delete
        kernel = kernel_push._push_kernel(folder / "script", push_token)
        record_result(f"version {kernel.version}")
    with _timed(probe, "status") as record_result:
        record_result(_wait_for_end(kernel, poll))
    with _timed(probe, "log") as record_result:
        record_result(session_progress._ask_progress(kernel) or "no progress line in it")
    with _timed(probe, "listing and pull") as record_result:
        output = kernel_output.pull_with_retries(kernel, folder / "out")
        record_result(f"{len(output.files)} files, verified against their manifest")
    probe.machine = _Machine.from_json(read_json(folder / "out" / "run" / _PROBE_FILE))
    _record_refusals(probe, kernel)


def _wait_for_end(kernel: Kernel, poll: float) -> str:
    """Wait until the session has ended, and return the states that it went through.

    Raises:
        KaggleError: it failed, or did not end in time.
    """
    states: list[str] = []
    reader, start = session_progress._ProgressReader(), time.monotonic()
    with StatusLine() as waiting:
        while True:
            status, message = kernel_output.kernel_status(kernel)
            states += [status] if status not in states[-1:] else []
            if status in kernel_output.END_STATES:
                break
            waited = time.monotonic() - start
            if waited > _MAX_PROBE_SECONDS:
                raise KaggleError(
                    f"{kernel.ref} is {status.lower()} after {format_duration(waited)}", "", "Try again later"
                )
            waiting.show(reader.describe(kernel, status, waited))
            time.sleep(poll)
    if status != "COMPLETE":
        raise kernel_output.explain_session_end(kernel, status, message, kernel_output.session_log(kernel))
    return ", ".join(states)


def _record_refusals(probe: _Probe, kernel: Kernel) -> None:
    """Request versions and kernels that do not exist, to record how Kaggle refuses them. The launch needs no result."""
    requests = {
        "status of a bare version number": (kernel.ref, str(kernel.version)),
        "status of a version that is not there": (kernel.ref, f"v{kernel.version + 98}"),
        "status of a kernel that is not there": (f"{kernel.ref}-none", "v1"),
    }
    for name, (ref, label) in requests.items():
        with _timed(probe, name) as record_result:
            try:
                record_result(api._call_once(api._STATUS_OF_LABEL, ref=ref, label=label))
            except KaggleError as error:
                record_result(f"refused ({error.status or error.found})")


def _remove_kernel(probe: _Probe) -> None:
    """Delete the kernel if there is one. If that fails, log the address of its page."""
    if not probe.ref:
        return
    try:
        with _timed(probe, "delete") as done:
            error = api._call_with_retries(api._DELETE, ref=probe.ref)
            if error:
                raise KaggleError(f"Kaggle did not delete the kernel: {error}")
            done("deleted")
        probe.deleted = True
    except KaggleError as error:
        missing = error.status in (403, 404) and not any(step.name == "status" for step in probe.steps)
        probe.deleted = missing  # the push never arrived
        if not missing:
            log_info(f"{error.found}; delete it at {api._CODE_PAGE}/{probe.ref}")


@contextmanager
def _timed(probe: _Probe, name: str) -> Iterator[Callable[[str], None]]:
    """Record a step with its duration, and its result or its error."""
    start = time.monotonic()
    results: list[str] = []
    try:
        yield results.append
    except ClarisError as error:
        probe.steps.append(_Step(name, round(time.monotonic() - start, 1), error.found, failed=True))
        raise
    probe.steps.append(_Step(name, round(time.monotonic() - start, 1), "".join(results)))


def _write_record(path: Path, probe: _Probe, started: str, exchanges: Sequence[object]) -> None:
    """Write the record for a bug report, without the account's name."""
    content: object = {
        "schema": _SCHEMA,
        "began": started,
        "claris": __version__,
        "client": {name: importlib.metadata.version(name) for name in ("kaggle", "kagglesdk", "requests")},
        "python": platform.python_version(),
        "system": platform.system(),
        "error": probe.error,
        "deleted": probe.deleted,
        "steps": [asdict(step) for step in probe.steps],
        "machine": probe.machine.to_json() if probe.machine else {},
        "exchanges": exchanges,
    }
    home = str(Path.home())  # it often contains a person's name
    for name in (probe.user, home if home != "/" else ""):
        content = wire_log._hide_user(content, name)
    write_json(path, content)


def _describe_image(machine: _Machine) -> list[str]:
    """Return a description of the session's machine, one line per subject."""
    found = [f"{name} {machine.packages.get(name, 'missing')}" for name in _TESTED_VERSIONS]
    disks = [f"{name} {one.free_gb} of {one.total_gb} GB free" for name, one in machine.disk.items()]
    reached = machine.reached
    network = f"{reached.host} {'answers' if reached.answered else 'does not answer'}" if reached else ""
    lines = [
        f"Python {machine.python}, {', '.join(found)}",
        f"{machine.cpus} CPU cores, {machine.memory_gb} GB memory, {'; '.join(disks)}",
        f"the competition's files: {machine.data} in {machine.inputs.root}",
    ]
    return [*lines, network] if network else lines


def _unexpected_versions(packages: Mapping[str, str]) -> list[str]:
    """Return the packages whose versions differ from the tested ones."""
    return [
        f"{name} {packages.get(name, 'missing')} (tested with {wanted})"
        for name, wanted in _TESTED_VERSIONS.items()
        if not str(packages.get(name, "")).startswith(wanted)
    ]
