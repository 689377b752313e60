"""What Kaggle says of the account: login, rules, submissions and GPU hours, each with the page that mends it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claris_kaggle.core.console import say
from claris_kaggle.core.errors import ClarisError
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.findings import BAD, GOOD, WARNING, Finding
from claris_kaggle.core.paths import default_cache
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.launch_state import Launch, Plan
from claris_kaggle.kaggle.probe import Probe, describe_image, run_probe, unexpected_versions
from claris_kaggle.kaggle.quota import Fit, ask_quota, describe_quota, judge_plan, require_quota

COMPETITION_PAGE = f"{api.SITE}/competitions/{api.COMPETITION}"
RULES_PAGE = api.rules_page()
# By the client's own names, in the order in which it looks for them.
METHODS = {
    "access_token": "an API token (KAGGLE_API_TOKEN or ~/.kaggle/access_token)",
    "legacy_api_key": "a user name and key (kaggle.json, or KAGGLE_USERNAME and KAGGLE_KEY)",
    "oauth": "kaggle auth login",
}
ACCOUNTS = "accounts.json"


def examine_account() -> list[Finding]:
    """Ask Kaggle about the account: who it is, the rules, the submissions left and the GPU hours."""
    try:
        answer = api.patiently("whoami")
    except ClarisError as error:
        return [Finding("kaggle account", BAD, error.found, api.LOGIN)]
    looks: dict[str, Callable[[], list[Finding]]] = {
        "kaggle account": lambda: [describe_login(answer)],
        "rules": look_at_competition,
        "gpu hours": lambda: [look_at_quota()],
    }
    findings = []
    for name, look in looks.items():
        try:
            findings += look()
        except ClarisError as error:
            findings.append(Finding(name, BAD, error.found, error.mend))
    return findings


def describe_login(answer: dict[str, Any]) -> Finding:
    """Return who is logged in, and how."""
    user, method = str(answer["user"]), METHODS.get(str(answer.get("method", "")), "")
    if not user:
        return Finding("kaggle account", BAD, "the token does not tell the user name", "Set KAGGLE_USERNAME as well")
    return Finding("kaggle account", GOOD, f"{user}, logged in by {method}" if method else user)


def look_at_competition() -> list[Finding]:
    """Ask Kaggle how the account stands in the competition: the rules, and the submissions."""
    answer = api.patiently("competition", competition=api.COMPETITION)
    rules = describe_rules(answer)
    if rules.state == BAD:
        return [rules]  # Kaggle refuses to tell more
    return [rules, describe_submissions(answer)]


def describe_rules(answer: dict[str, Any]) -> Finding:
    """Return whether the account has accepted the competition's rules."""
    mend = f"Accept them at {RULES_PAGE} (Join Competition or Late Submission)"
    if not answer["found"]:
        return Finding("rules", WARNING, "Kaggle did not say whether they are accepted", f"Look at {RULES_PAGE}")
    if not answer["entered"]:
        return Finding("rules", BAD, "the competition's rules are not accepted", mend)
    return Finding("rules", GOOD, "the competition's rules are accepted")


def describe_submissions(answer: dict[str, Any]) -> Finding:
    """Return whether the competition takes submissions, and how many are left today."""
    if answer.get("closed") or answer.get("only_kernels"):
        why = "takes no submissions now" if answer.get("closed") else "takes submissions from notebooks only"
        return Finding("submissions", BAD, f"the competition {why}", f"Look at {COMPETITION_PAGE}/submissions")
    limits = api.patiently("limits", competition=api.COMPETITION)
    left, made = int(limits["allowed"]), int(limits["today"])
    if left < 1 and made:
        return Finding("submissions", WARNING, f"none left today, {made} made", "Submit after midnight UTC")
    # An account without a team yet gets zeros.
    count = f"{left} left today" if left else f"{answer.get('daily') or 5} a day"
    return Finding("submissions", GOOD, f"open, {count}")


def look_at_quota() -> Finding:
    """Return the GPU hours, and whether a launch with the default options fits into them."""
    quota = ask_quota()
    if quota is None:
        return Finding("gpu hours", WARNING, "Kaggle named no GPU hours", f"Look at {api.SETTINGS_PAGE}")
    verdict = judge_plan(quota, Plan(name="default").hours())
    if verdict.fit is Fit.NEVER:
        mend = f"Verify your phone number at {api.SETTINGS_PAGE}"
        return Finding("gpu hours", BAD, "0 h a week, so a session has 0 GPUs", mend)
    state = GOOD if verdict.fit is Fit.FITS else WARNING
    return Finding("gpu hours", state, f"{describe_quota(quota)}; a launch with default options: {verdict.text}")


def examine_probe(path: Path, *, poll: float = 10.0) -> list[Finding]:
    """Rehearse a launch with a CPU script, and return what was found; the record is written to the file."""
    probe = run_probe(path, poll=poll)
    if probe.user:
        remember_account(probe.user)
    return [*describe_probe(probe, path), *(describe_machine(probe) if probe.machine else [])]


def describe_probe(probe: Probe, path: Path) -> list[Finding]:
    """Return how the rehearsal went: the calls, where the kernel is, and where the record is."""
    steps = "; ".join(f"{step.name}: {step.result} ({step.seconds:g} s)" for step in probe.steps)
    findings = [Finding("probe", BAD if probe.error else GOOD, steps, probe.error)]
    if probe.ref and not probe.deleted:
        where = f"Delete it at {api.CODE_PAGE}/{probe.ref}"
        findings.append(Finding("probe kernel", WARNING, f"{probe.ref} is still there", where))
    return [*findings, Finding("probe record", GOOD, f"{path}, without names or tokens: attach it to a bug report")]


def describe_machine(probe: Probe) -> list[Finding]:
    """Return what Kaggle's image holds, and what of it is not as tested."""
    findings = [Finding("kaggle image", GOOD, line) for line in describe_image(probe.machine)]
    others = unexpected_versions(probe.machine)
    if others:
        findings.append(Finding("kaggle image", WARNING, f"other versions than tested: {', '.join(others)}"))
    if str(probe.machine.get("data", "")).startswith("not found"):
        findings.append(Finding("kaggle image", BAD, "the competition's files are not mounted", f"See {RULES_PAGE}"))
    return findings


def prepare_account(launch: Launch) -> None:
    """Say how many GPU hours are left, and whether the parts that are not pushed yet fit into them.

    Raises:
        KaggleError: the account has no GPU hours at all, or its token has expired.
    """
    parts = tuple(launch.plan.parts[part] for part in range(len(launch.rounds)) if launch.needs_push(part))
    if parts:
        require_quota(dataclasses.replace(launch.plan, parts=parts).hours())
        propose_probe(launch.user)


def propose_probe(user: str) -> None:
    """Say once, before an account's first launch from here, how the way can be rehearsed."""
    if user not in known_accounts():
        say(
            f"first launch of {user} from this machine: claris doctor --probe rehearses it in some minutes "
            "with a CPU script that costs no GPU hours"
        )
        remember_account(user)


def known_accounts() -> list[str]:
    """Return the accounts that a launch or a probe was made with on this machine."""
    try:
        return [str(one) for one in read_json(default_cache() / ACCOUNTS)["accounts"]]
    except (ClarisError, OSError, KeyError, TypeError):
        return []


def remember_account(user: str) -> None:
    """Put the account down as known; a machine where that cannot be written is asked again."""
    with contextlib.suppress(ClarisError, OSError):
        write_json(default_cache() / ACCOUNTS, {"accounts": sorted({*known_accounts(), user})})
