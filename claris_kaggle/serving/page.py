"""Format classifications as a self-contained page without scripts, or as JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from claris_kaggle.core.files import write_text
from claris_kaggle.core.paths import require_suffix
from claris_kaggle.inference.evidence import NO_MAP
from claris_kaggle.inference.fold_models import FoldModels
from claris_kaggle.reporting import templates
from claris_kaggle.reporting.pictures import MAP_LIMITS, data_uri, draw_heat, draw_map, jpeg_uri
from claris_kaggle.serving.classify import NOTICE, Classification, explain_missing_range
from claris_kaggle.version import __version__

_CLASSIFY_TEMPLATE = "classify.html.jinja"
_ROW_COLUMNS = (
    "name", "answer", "verdict", "probability", "calibrated", "threshold", "fold_low", "fold_high", "view_low",
    "view_high", "width", "height", "top", "left", "malignant_windows", "reasons", "error",
)  # fmt: skip


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
    about = {"notice": NOTICE, "run": {**run, "oof_auc": trained.metric("auc")}}
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
    values = found.to_json()
    return {
        **values,
        "json": values,
        "fold_range": found.fold_range,
        "view_range": found.view_range,
        "strongest": None if found.map is None else float(np.abs(found.map).max()),
        "pictures": {name: None if picture is None else jpeg_uri(picture) for name, picture in pictures.items()},
    }


def _render_page(
    sections: Sequence[Mapping[str, Any]],
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
    first = sections[0]["json"] if sections else None
    about = {
        "notice": NOTICE,
        "no_map": NO_MAP,
        "no_range": explain_missing_range(len(first["folds"]), len(first["views"])) if first else "",
        "map_limits": MAP_LIMITS,
        "trained": trained,
        "auc": trained.metric("auc"),
        "version": __version__,
    }
    return templates.render_template(template, images=sections, faults=faults, **about, **more)


def write_page(
    path: Path, sections: Sequence[Mapping[str, object]], faults: Sequence[str], trained: FoldModels
) -> None:
    """Write the page to `path` atomically. Names are relative to the common folder, because pages are shared."""
    folder = _common_folder([str(section["name"]) for section in sections])
    named = [{**section, "name": str(section["name"]).removeprefix(folder)} for section in sections]
    messages = [fault.removeprefix(folder) for fault in faults]
    write_text(require_suffix(path, ".html", ".htm"), _render_page(named, messages, trained))


def _make_downloads(
    sections: Sequence[Mapping[str, Any]], faults: Sequence[str], trained: FoldModels, views: int
) -> Mapping[str, tuple[str, str]]:
    """Return the results as files, which the page contains as links: each name and data URI by the kind of the file.

    The files have the content of `claris classify --json` and `--html`.
    """
    stem = sections[0]["name"] if len(sections) == 1 else f"{len(sections)} images"
    values = json.dumps(all_as_json(trained, views, [section["json"] for section in sections], faults)) + "\n"
    page = _render_page(sections, faults, trained)
    return {
        "JSON": (f"{stem}.json", data_uri(values.encode(), "application/json")),
        "HTML page": (f"{stem}.html", data_uri(page.encode(), "text/html")),
    }


def _common_folder(names: Sequence[str]) -> str:
    """Return the longest folder that all names begin with, with the separator at its end; empty if there is none.

    >>> _common_folder(["scans/a/1.tif", "scans/b/1.tif"]), _common_folder(["1.tif"])
    ('scans/', '')
    """
    same = os.path.commonprefix([name[: name.rfind(os.sep) + 1] for name in names])
    return same[: same.rfind(os.sep) + 1]


def write_rows(path: Path, images: Sequence[Mapping[str, object]]) -> None:
    """Write one row per image to a CSV file, atomically.

    Args:
        path: the file, whose name ends in .csv.
        images: values from `Classification.to_json`; for an image that was not classified, its `name` and `error`.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_ROW_COLUMNS)
    writer.writerows(_row_of(image) for image in images)
    write_text(require_suffix(path, ".csv"), stream.getvalue())


def _row_of(image: Mapping[str, Any]) -> list[object]:
    """Return the cells of an image; an unknown value is empty."""
    cells = dict(image)
    if "error" not in image:
        for unit, values in (("fold", list(image["folds"].values())), ("view", image["views"])):
            if len(values) > 1:
                cells.update({f"{unit}_low": min(values), f"{unit}_high": max(values)})
        windows = image["windows"]
        cells.update(malignant_windows=windows and windows["malignant"], reasons="; ".join(image["reasons"]))
    return ["" if cells.get(name) is None else cells[name] for name in _ROW_COLUMNS]
