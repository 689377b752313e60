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


def _escape(value: object) -> str:
    """Return the value as HTML text; a float with four decimals."""
    return html.escape(f"{value:.4f}" if isinstance(value, float) else str(value))
