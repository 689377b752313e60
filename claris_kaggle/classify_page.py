"""The page of `claris classify`: every answer with its pictures, in one file without a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claris_kaggle import __version__
from claris_kaggle.classify import NOTICE, Classification
from claris_kaggle.errors import UsageError
from claris_kaggle.files import write_text
from claris_kaggle.pictures import draw_heat, draw_map, png_uri
from claris_kaggle.trained import Trained

TEMPLATE = "classify.html.jinja"


def require_page_name(path: Path) -> Path:
    """The path itself.

    Raises:
        UsageError: it does not end in .html.
    """
    if path.suffix not in (".html", ".htm"):
        raise UsageError(f"{path}: not a name of a page", "a name that ends in .html is needed")
    return path


def section(found: Classification, crop: int) -> dict[str, Any]:
    """What the page says of one image; the image itself is not kept.

    Args:
        crop: the config's, over which the map lies.
    """
    heat = found.heat
    drawn = draw_heat(found.pixels, heat.tops, heat.lefts, heat.probabilities, found.threshold) if heat else None
    tinted = None if found.map is None else draw_map(found.patch, found.map, crop)
    pictures = {"heat": drawn, "patch": found.patch, "map": tinted}
    return {
        **found.to_json(),
        "fold_range": found.fold_range,
        "view_range": found.view_range,
        "pictures": {name: png_uri(picture) for name, picture in pictures.items() if picture is not None},
    }


def render(sections: Sequence[dict[str, Any]], faults: Sequence[str], trained: Trained) -> str:
    """The whole page.

    Args:
        sections: of `section`.
        faults: what was wrong with other images, a line each.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("claris_kaggle", ""), autoescape=True, trim_blocks=True)
    return environment.get_template(TEMPLATE).render(
        images=sections,
        faults=faults,
        notice=NOTICE,
        trained=trained,
        auc=trained.figure("auc"),
        version=__version__,
    )


def write_page(path: Path, sections: Sequence[dict[str, Any]], faults: Sequence[str], trained: Trained) -> None:
    """Put the page in place whole."""
    write_text(require_page_name(path), render(sections, faults, trained))
