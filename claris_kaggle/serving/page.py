"""Format classifications as a self-contained page without scripts, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from claris_kaggle.core.files import write_text
from claris_kaggle.core.paths import require_suffix
from claris_kaggle.inference.evidence import NO_MAP
from claris_kaggle.inference.fold_models import FoldModels
from claris_kaggle.reporting import templates
from claris_kaggle.reporting.pictures import draw_heat, draw_map, jpeg_uri
from claris_kaggle.serving.classify import NOTICE, Classification
from claris_kaggle.version import __version__

_CLASSIFY_TEMPLATE = "classify.html.jinja"


def all_as_json(
    trained: FoldModels, views: int, images: Sequence[Mapping[str, object]], faults: Sequence[str]
) -> Mapping[str, object]:
    """Return classifications as one JSON object, with the run they come from and the research-use notice.

    Args:
        trained: the networks.
        views: number of test-time augmentation views: 1, 4 or 8.
        images: values from `Classification.to_json`.
        faults: error messages of other images, one line each.
    """
    run = {"name": trained.name, "model": trained.config.model, "folds": list(trained.models), "views": views}
    about = {"notice": NOTICE, "run": {**run, "oof_auc": trained.figure("auc")}}
    return {**about, "images": list(images), "faults": list(faults)}


def render_section(found: Classification, crop: int) -> Mapping[str, object]:
    """Return the values of the page's section about one image. They do not include the full-size image.

    Args:
        found: the classification.
        crop: side of the central square that the map covers, in pixels, from the config.
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
    sections: Sequence[Mapping[str, object]],
    faults: Sequence[str],
    trained: FoldModels,
    template: str = _CLASSIFY_TEMPLATE,
    **more: object,
) -> str:
    """Return the page as HTML.

    Args:
        sections: values from `render_section`.
        faults: error messages of other images, one line each.
        trained: the networks.
        template: the name of the template: the default, or one that extends it.
        more: further values for `template`.
    """
    about = {
        "notice": NOTICE,
        "no_map": NO_MAP,
        "trained": trained,
        "auc": trained.figure("auc"),
        "version": __version__,
    }
    return templates.render_template(template, images=sections, faults=faults, **about, **more)


def write_page(
    path: Path, sections: Sequence[Mapping[str, object]], faults: Sequence[str], trained: FoldModels
) -> None:
    """Write the page to `path` atomically."""
    write_text(require_suffix(path, ".html", ".htm"), _render_page(sections, faults, trained))
