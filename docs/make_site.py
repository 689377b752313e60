"""Write the documentation as a site: the pages as HTML, and the API reference from the docstrings.

python docs/make_site.py build/docs
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import markdown2
import pdoc

import claris_kaggle
from claris_kaggle.reporting.templates import render_template

ROOT = Path(__file__).parent.parent
# Each page of the site with its source and its title in the contents, in the order in which a newcomer reads them.
PAGES = {
    "index.html": ("README.md", "Start"),
    "docs/own-machine.html": ("docs/own-machine.md", "On your own machine"),
    "docs/kaggle.html": ("docs/kaggle.md", "On Kaggle"),
    "docs/recipes.html": ("docs/recipes.md", "Recipes"),
    "docs/inputs.html": ("docs/inputs.md", "Inputs"),
    "docs/ensembling.html": ("docs/ensembling.md", "Combining runs"),
    "docs/performance.html": ("docs/performance.md", "Performance"),
    "docs/reliability.html": ("docs/reliability.md", "Fault injection"),
    "docs/recovering.html": ("docs/recovering.md", "Troubleshooting"),
    "ARCHITECTURE.html": ("ARCHITECTURE.md", "Architecture"),
    "CONTRIBUTING.html": ("CONTRIBUTING.md", "Contributing"),
    "CHANGELOG.html": ("CHANGELOG.md", "Changelog"),
}
API = "api/claris_kaggle.html"
LAYOUT = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: claris</title>
<style>{style}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: .7rem 0; margin: 0; }}
nav {{ border-bottom: 1px solid var(--line); }}
main pre {{ overflow-x: auto; padding: .7rem 1rem; background: var(--tint); border-radius: .6rem; }}
main img {{ max-width: 100%; height: auto; }}
main h1 {{ margin-top: 1.5rem; }} main h2, main h3 {{ margin-top: 2rem; }}
main li {{ max-width: 44rem; }}
main code {{ overflow-wrap: anywhere; }}
main td, main th {{ white-space: normal; text-align: left; vertical-align: top; }}
main th:first-child {{ min-width: 9rem; }}
</style></head>
<body><header><nav aria-label="Pages"><ul>{links}</ul></nav></header><main>{body}</main></body>
</html>
"""


def main(out: Path) -> None:
    """Write all pages and the files that they show."""
    style = render_template("page.css.jinja")
    for target, (source, title) in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        up = "../" * target.count("/")
        listed = {**{name: shown for name, (_, shown) in PAGES.items()}, API: "API"}
        links = "".join(f'<li><a href="{up}{name}">{shown}</a></li>' for name, shown in listed.items())
        html = markdown2.markdown(text, extras=["tables", "fenced-code-blocks", "header-ids"])
        body = _wrap_tables(_link_pages(html, ROOT / source))
        path = out / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LAYOUT.format(title=title, style=style, links=links, body=body), "utf-8")
        for shown in re.findall(r'src="([\w./-]+)"', body):
            _copy((ROOT / source).parent / shown, path.parent / shown)
    write_reference(out / API)


def write_reference(page: Path) -> None:
    """Write the API reference of the public names."""
    for name in claris_kaggle.__all__:
        getattr(claris_kaggle, name)  # public names are imported on first use, and pdoc documents imported names only
    pdoc.render.configure(docformat="google", footer_text=f"claris_kaggle {claris_kaggle.__version__}")
    pdoc.pdoc("claris_kaggle", "!claris_kaggle.cli", "!claris_kaggle.__main__", output_directory=page.parent)


def _link_pages(body: str, source: Path) -> str:
    """Return the HTML of a page with links to the pages of the site, and without links to other files.

    Args:
        body: the HTML.
        source: the Markdown file that it was made from.
    """
    targets = {(ROOT / name).resolve(): target for target, (name, _) in PAGES.items()}

    def changed(found: re.Match[str]) -> str:
        file, anchor, text = found[1], found[2] or "", found[3]
        target = targets.get((source.parent / file).resolve())
        up = "../" * (len(source.relative_to(ROOT).parts) - 1)
        return text if target is None else f'<a href="{up}{target}{anchor}">{text}</a>'

    return re.sub(r'<a href="(?![a-z]+:)([^"#]+)(#[^"]*)?">(.*?)</a>', changed, body)


def _wrap_tables(body: str) -> str:
    """Return the HTML of a page with each table in a box that scrolls, with a shade where there is more of it."""
    box = '<div class="wide" role="group" tabindex="0" aria-label="Table"><table>'
    return body.replace("<table>", box).replace("</table>", "</table></div>")


def _copy(source: Path, target: Path) -> None:
    """Copy a file that a page shows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
