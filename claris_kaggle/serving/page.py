"""What is shown of answers: a page with every picture in itself and no script, or one object for a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claris_kaggle.core.files import write_text
from claris_kaggle.core.paths import require_suffix
from claris_kaggle.inference.fold_models import FoldModels
from claris_kaggle.reporting import templates
from claris_kaggle.reporting.pictures import draw_heat, draw_map, jpeg_uri
from claris_kaggle.serving.classify import NOTICE, Classification
from claris_kaggle.version import __version__

_CLASSIFY_TEMPLATE = "classify.html.jinja"


def all_as_json(
    trained: FoldModels, views: int, images: Sequence[dict[str, Any]], faults: Sequence[str]
) -> dict[str, Any]:
    """The answers as one object for a program, with what they come from and that they are no diagnosis.

    Args:
        images: of `Classification.to_json`.
        faults: what was wrong with other images, a line each.
    """
    run = {"name": trained.name, "model": trained.config.model, "folds": list(trained.models), "views": views}
    about = {"notice": NOTICE, "run": {**run, "oof_auc": trained.figure("auc")}}
    return {**about, "images": list(images), "faults": list(faults)}


def render_section(found: Classification, crop: int) -> dict[str, Any]:
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
        "pictures": {name: None if picture is None else jpeg_uri(picture) for name, picture in pictures.items()},
    }


def _render_page(
    sections: Sequence[dict[str, Any]],
    faults: Sequence[str],
    trained: FoldModels,
    template: str = _CLASSIFY_TEMPLATE,
    **more: object,
) -> str:
    """The whole page.

    Args:
        sections: of `render_section`.
        faults: what was wrong with other images, a line each.
        template: its name; another one extends the first.
        more: what the other one needs besides.
    """
    about = {"notice": NOTICE, "trained": trained, "auc": trained.figure("auc"), "version": __version__}
    return templates.render_template(template, images=sections, faults=faults, **about, **more)


def write_page(path: Path, sections: Sequence[dict[str, Any]], faults: Sequence[str], trained: FoldModels) -> None:
    """Put the page in place whole."""
    write_text(require_suffix(path, ".html", ".htm"), _render_page(sections, faults, trained))
