"""Check the Kaggle account: login, rules, submissions and GPU hours, each with the page where to fix a problem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import ClarisError
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.findings import BAD, GOOD, WARNING, Finding, run_check
from claris_kaggle.core.paths import default_cache
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.client_answers import _CompetitionState, _Login
from claris_kaggle.kaggle.launch_state import Plan, _Launch, _sum_hours
from claris_kaggle.kaggle.machine import _Machine
from claris_kaggle.kaggle.probe import _describe_image, _Probe, _run_probe, _unexpected_versions
from claris_kaggle.kaggle.quota import _ask_quota, _compare_with_quota, _describe_quota, _Fit, _require_quota

_COMPETITION_PAGE = f"{api._SITE}/competitions/{api._COMPETITION}"
_RULES_PAGE = api._rules_page()
# Keys are the client's names of its login methods, in the order in which it tries them.
_LOGIN_METHODS = {
    "access_token": "an API token (KAGGLE_API_TOKEN or ~/.kaggle/access_token)",
    "legacy_api_key": "a user name and key (kaggle.json, or KAGGLE_USERNAME and KAGGLE_KEY)",
    "oauth": "kaggle auth login",
}
_ACCOUNTS_FILE = "accounts.json"


def check_account() -> list[Finding]:
    """Check the account on Kaggle: login, competition rules, submissions left today and GPU hours.

    Returns:
        At least one finding per check. A failed call is a finding, not an error.
    """
    try:
        login = api._call_with_retries(api._WHOAMI)
    except ClarisError as error:
        return [Finding("kaggle account", BAD, error.found, api._LOGIN)]
    checks: dict[str, Callable[[], list[Finding]]] = {
        "kaggle account": lambda: [_describe_login(login)],
        "rules": _check_competition,
        "gpu hours": lambda: [_check_quota()],
    }
    return [finding for name, check in checks.items() for finding in run_check(name, check)]


def _describe_login(login: _Login) -> Finding:
    """Report the user name and the login method."""
    user, method = login.user, _LOGIN_METHODS.get(login.method, "")
    if not user:
        return Finding("kaggle account", BAD, "the token does not contain the user name", "Set KAGGLE_USERNAME as well")
    return Finding("kaggle account", GOOD, f"{user}, logged in by {method}" if method else user)


def _check_competition() -> list[Finding]:
    """Ask Kaggle if the competition's rules are accepted and how many submissions are left."""
    state = api._call_with_retries(api._COMPETITION_STATE, competition=api._COMPETITION)
    rules = _describe_rules(state)
    if rules.state == BAD:
        return [rules]  # Kaggle refuses further requests
    return [rules, _describe_submissions(state)]


def _describe_rules(state: _CompetitionState) -> Finding:
    """Report whether the account has accepted the competition's rules."""
    hint = f"Accept them at {_RULES_PAGE} (Join Competition or Late Submission)"
    if not state.found:
        return Finding("rules", WARNING, "Kaggle does not say whether they are accepted", f"See {_RULES_PAGE}")
    if not state.entered:
        return Finding("rules", BAD, "the competition's rules are not accepted", hint)
    return Finding("rules", GOOD, "the competition's rules are accepted")


def _describe_submissions(state: _CompetitionState) -> Finding:
    """Report whether the competition accepts submissions, and how many are left today."""
    if state.closed or state.only_kernels:
        reason = "accepts no submissions now" if state.closed else "accepts submissions from notebooks only"
        return Finding("submissions", BAD, f"the competition {reason}", f"See {_COMPETITION_PAGE}/submissions")
    limits = api._call_with_retries(api._LIMITS, competition=api._COMPETITION)
    remaining, used = limits.allowed, limits.today
    if remaining < 1 and used:
        return Finding("submissions", WARNING, f"none left today, {used} made", "Submit after midnight UTC")
    # Kaggle returns zeros for an account that has no team yet.
    count = f"{remaining} left today" if remaining else f"{state.daily or 5} a day"
    return Finding("submissions", GOOD, f"open, {count}")


def _check_quota() -> Finding:
    """Report the GPU hours, and whether a launch with the default options fits into them."""
    quota = _ask_quota()
    if quota is None:
        return Finding("gpu hours", WARNING, "Kaggle returned no GPU hours", f"See {api._SETTINGS_PAGE}")
    verdict = _compare_with_quota(quota, Plan(name="default").hours())
    if verdict.fit is _Fit.NEVER:
        hint = f"Verify your phone number at {api._SETTINGS_PAGE}"
        return Finding("gpu hours", BAD, "0 h a week, so a session has 0 GPUs", hint)
    state = GOOD if verdict.fit is _Fit.FITS else WARNING
    return Finding("gpu hours", state, f"{_describe_quota(quota)}; a launch with default options: {verdict.text}")


def check_probe(path: Path, *, poll: float = 10.0) -> list[Finding]:
    """Rehearse a launch with a CPU script, and return the findings.

    Args:
        path: JSON file to write the record to.
        poll: seconds between two status requests.
    """
    probe = _run_probe(path, poll=poll)
    if probe.user:
        _record_account(probe.user)
    return [*_describe_probe(probe, path), *(_describe_probe_machine(probe.machine) if probe.machine else [])]


def _describe_probe(probe: _Probe, path: Path) -> list[Finding]:
    """Report the rehearsal: its calls, the kernel if it still exists, and the path of the record."""
    steps = "; ".join(f"{step.name}: {step.result} ({step.seconds:g} s)" for step in probe.steps)
    findings = [Finding("probe", BAD if probe.error else GOOD, steps, probe.error)]
    if probe.ref and not probe.deleted:
        where = f"Delete it at {api._CODE_PAGE}/{probe.ref}"
        findings.append(Finding("probe kernel", WARNING, f"{probe.ref} is still there", where))
    return [*findings, Finding("probe record", GOOD, f"{path}, without names or tokens: attach it to a bug report")]


def _describe_probe_machine(machine: _Machine) -> list[Finding]:
    """Report the contents of Kaggle's image, with a warning for versions other than the tested ones."""
    findings = [Finding("kaggle image", GOOD, line) for line in _describe_image(machine)]
    others = _unexpected_versions(machine.packages)
    if others:
        findings.append(Finding("kaggle image", WARNING, f"other versions than tested: {', '.join(others)}"))
    if machine.data.startswith("not found"):
        findings.append(Finding("kaggle image", BAD, "the competition's files are not mounted", f"See {_RULES_PAGE}"))
    return findings


def _prepare_account(*launches: _Launch) -> None:
    """Log the GPU hours that are left, and whether the parts that are not pushed yet fit into them.

    Args:
        launches: one or more launches of the same account.

    Raises:
        KaggleError: the account has no GPU hours at all, or its token has expired.
    """
    hours = _sum_hours([launch.hours_to_push() for launch in launches])
    if hours != 0:
        _require_quota(hours)
        _suggest_probe(launches[0].user)


def _suggest_probe(user: str) -> None:
    """Suggest `claris doctor --probe` once, before the first launch of an account from this machine."""
    if user not in _read_known_accounts():
        log_info(
            f"first launch of {user} from this machine: claris doctor --probe rehearses it in some minutes "
            "with a CPU script that costs no GPU hours"
        )
        _record_account(user)


def _read_known_accounts() -> list[str]:
    """Return the accounts that have made a launch or a probe on this machine."""
    try:
        return [str(account) for account in read_json(default_cache() / _ACCOUNTS_FILE)["accounts"]]
    except (ClarisError, OSError, KeyError, TypeError):
        return []


def _record_account(user: str) -> None:
    """Record the account as known. Write errors are ignored: the suggestion is then shown again."""
    with contextlib.suppress(ClarisError, OSError):
        write_json(default_cache() / _ACCOUNTS_FILE, {"accounts": sorted({*_read_known_accounts(), user})})
