"""Render pages and documents from the templates in the package, without external resources."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from claris_kaggle.core.console import format_duration

if TYPE_CHECKING:
    from jinja2 import Environment


def render_template(template: str, **values: object) -> str:
    """Render a template, such as `report.html.jinja`, with `values` and return the text. HTML is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """Return the Jinja environment with the number filters. An undefined name in a template is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("claris_kaggle.reporting.templates", ""),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    found.filters.update(
        digits=lambda value, places=4: "–" if value is None else f"{value:.{places}f}",
        signed=lambda value, places=4: f"{value:+.{places}f}".replace("-", "−"),
        percent=lambda value, places=1: f"{100 * value:.{places}f}\u00a0%",
        number=lambda value: f"{value:,}",
        duration=format_duration,
    )
    return found
