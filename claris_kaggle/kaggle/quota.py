"""Read the account's GPU hours, and check if a plan fits into them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import KaggleError
from claris_kaggle.kaggle import api
from claris_kaggle.kaggle.client_answers import _QuotaAnswer


@dataclass(frozen=True, kw_only=True)
class _GpuQuota:
    """The GPU hours of one week.

    Attributes:
        used: hours used by ended sessions.
        reserved: hours that running sessions may still use; Kaggle counts the time limit of each.
        allowed: total hours.
        renews: start of the next week, in UTC; None if Kaggle does not give it.
    """

    used: float
    reserved: float
    allowed: float
    renews: datetime | None

    @property
    def free(self) -> float:
        """Return the hours that are neither used nor reserved."""
        return max(0.0, self.allowed - self.used - self.reserved)


class _Fit(Enum):
    """The ways in which a plan can fit into the quota."""

    FITS = "fits"
    WAITS = "waits"
    WEEKS = "takes more than one week"
    NEVER = "no GPU"


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """The result of comparing a plan with the quota.

    Attributes:
        fit: the case.
        text: one line for the user that says what to do or what will happen.
    """

    fit: _Fit
    text: str


def _ask_quota() -> _GpuQuota | None:
    """Return the account's GPU hours; None if Kaggle gives none.

    Raises:
        KaggleError: Kaggle did not answer.
    """
    return _parse_quota(api._call_with_retries(api._QUOTA))


def _require_quota(hours: float | None) -> None:
    """Log the account's GPU hours, and whether a plan fits into them. Does not stop a plan if Kaggle does not answer.

    Args:
        hours: estimated hours of the sessions to push; None if unknown.
    Raises:
        KaggleError: the account has no GPU hours at all, or its token has expired.
    """
    try:
        quota = _ask_quota()
    except KaggleError as error:
        if error.status == 401:  # all other calls would fail as well
            raise
        log_info(f"GPU hours: unknown ({error.found})")
        return
    verdict = _compare_with_quota(quota, hours)
    if verdict.fit is _Fit.NEVER:
        raise KaggleError(verdict.text, "nothing was pushed", "Run the same command after verification")
    log_info(f"GPU hours: {_describe_quota(quota)}; {verdict.text}" if quota else f"GPU hours: {verdict.text}")


def _parse_quota(answer: _QuotaAnswer) -> _GpuQuota | None:
    """Return the quota from an answer of the client; None if it has none for GPUs.

    >>> _parse_quota(_QuotaAnswer(known=True, used=7200.0, reserved=0.0, allowed=108000.0, renews="")).free
    28.0
    """
    if not answer.known:
        return None
    used, reserved, allowed = (seconds / 3600 for seconds in (answer.used, answer.reserved, answer.allowed))
    return _GpuQuota(used=used, reserved=reserved, allowed=allowed, renews=_parse_time(answer.renews))


def _parse_time(text: str) -> datetime | None:
    """Return the time in UTC; None if it is invalid. The client gives Kaggle's UTC times without a time zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _describe_quota(quota: _GpuQuota) -> str:
    """Return used, reserved and total hours and the start of the next week, in one line."""
    return (
        f"{quota.used:.1f} h used and {quota.reserved:.1f} h reserved by running sessions, of {quota.allowed:g} h "
        f"a week; the quota resets {_describe_renewal(quota)}"
    )


def _describe_renewal(quota: _GpuQuota) -> str:
    """Return the start of the next week, as text."""
    return f"{quota.renews:%a %Y-%m-%d %H:%M} UTC" if quota.renews else "at an unknown time"


def _compare_with_quota(quota: _GpuQuota | None, hours: float | None) -> _Verdict:
    """Compare a plan with the week's quota.

    Args:
        quota: of the account; None if Kaggle gives none.
        hours: estimated hours of the plan's sessions; None if unknown.
    """
    plan = f"the plan takes about {hours:.1f} h" if hours is not None else "the plan's hours are not known"
    if quota is None:
        return _Verdict(fit=_Fit.FITS, text=f"Kaggle returned no GPU hours; {plan}")
    if quota.allowed <= 0:
        hint = f"Kaggle gives GPUs after the phone number is verified at {api._SETTINGS_PAGE}"
        text = f"this account has 0 GPU hours: {hint}"
        return _Verdict(fit=_Fit.NEVER, text=text)
    if hours is not None and hours > quota.allowed:
        text = f"{plan}, and a week has {quota.allowed:g} h: the launch takes several weeks; or train fewer folds"
        return _Verdict(fit=_Fit.WEEKS, text=text)
    if quota.free <= 0:
        wait = "a running session ends, or the quota resets" if quota.reserved else "the quota resets"
        return _Verdict(fit=_Fit.WAITS, text=f"{plan}, but no hours are left: Kaggle starts no session until {wait}")
    if hours is not None and hours > quota.free:
        text = f"{plan}, and {quota.free:.1f} h are free: sessions may have to wait until {_describe_renewal(quota)}"
        return _Verdict(fit=_Fit.WAITS, text=text)
    return _Verdict(fit=_Fit.FITS, text=f"{plan}, and {quota.free:.1f} h are free")
