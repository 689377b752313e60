"""One result of `doctor`: what was checked, its state, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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
