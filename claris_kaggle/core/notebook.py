"""Show results as tables in Jupyter notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence


def html_table(rows: Mapping[str, Sequence[object]], columns: Sequence[str] = ()) -> str:
    """Return an HTML table for `_repr_html_`. All text is escaped.

    Args:
        rows: cells of each row, by the row's title.
        columns: titles of the columns; empty for a table without a header.

    >>> html_table({"AUC": ["0.9375"]})
    '<table><tr><th>AUC</th><td>0.9375</td></tr></table>'
    """
    header = ["<tr><th></th>" + "".join(f"<th>{_escape(one)}</th>" for one in columns) + "</tr>"] if columns else []
    body = [
        f"<tr><th>{_escape(title)}</th>" + "".join(f"<td>{_escape(cell)}</td>" for cell in cells) + "</tr>"
        for title, cells in rows.items()
    ]
    return f"<table>{''.join([*header, *body])}</table>"


def html_fields(values: Mapping[str, object]) -> str:
    """Return an HTML table with one row for each field of an object, such as `vars(metrics)`.

    >>> html_fields({"log_loss": 0.25})
    '<table><tr><th>log loss</th><td>0.2500</td></tr></table>'
    """
    return html_table({name.replace("_", " "): [value] for name, value in values.items()})


def _escape(value: object) -> str:
    """Return the value as HTML text; a float with four decimals."""
    return html.escape(f"{value:.4f}" if isinstance(value, float) else str(value))
