"""One result of `doctor`: what was checked, its state, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from claris_kaggle.core.errors import ClarisError

GOOD, WARNING, BAD = "good", "warning", "bad"


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, state, finding and hint."""

    name: str
    state: str
    found: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """Return all fields as plain values."""
        return asdict(self)


def run_check(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of a check. A ClarisError becomes a finding with this name."""
    try:
        return check()
    except ClarisError as error:
        return [Finding(name, BAD, error.found, error.hint)]
