"""One line of the doctor: what was looked at, how it is, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass

GOOD, WARNING, BAD = "good", "warning", "bad"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and what to do."""

    name: str
    state: str
    found: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """Return plain values."""
        return asdict(self)
