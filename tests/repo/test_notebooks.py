"""Test the notebooks of examples/: they run from top to bottom in a Jupyter kernel, and their objects have HTML."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import nbclient
import nbformat
import pytest

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.tables import read_sample
from claris_kaggle.ensembling.submission_file import check_submission
from tests.conftest import ROOT

KAGGLE, OOF = (ROOT / "examples" / name for name in ("kaggle.ipynb", "oof_ensemble.ipynb"))


def run_notebook(path: Path, folder: Path, settings: str, skipped: str = "") -> list[dict[str, object]]:
    """Run the notebook with other settings and without the cell tagged `skipped`. Return the data of its outputs."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            cell.source = settings
        if skipped in tags:
            cell.source = ""
    kept = signal.getsignal(signal.SIGINT)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    try:
        done = client.execute()
    finally:
        signal.signal(signal.SIGINT, kept)  # where SIGINT is ignored, the client leaves Python's own handler
    return [one["data"] for cell in done.cells for one in cell.get("outputs", []) if "data" in one]


def test_a_notebook_holds_no_output_and_installs_without_internet() -> None:
    for path in (KAGGLE, OOF):
        cells = nbformat.read(path, as_version=4).cells
        assert all(not cell.get("outputs") for cell in cells)
        assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    (install,) = [one for one in nbformat.read(KAGGLE, as_version=4).cells if "install" in one.metadata.get("tags", [])]
    assert re.search(r"^%pip install .*--no-index --no-deps", install.source, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("only", [(), (1,)])
def test_the_notebook_for_kaggle_ends_with_a_checked_submission(
    generated: DataDir, tmp_path: Path, only: tuple[int, ...]
) -> None:
    options = {"model": "tiny", "weights": "none", "epochs": 1, "batch_size": 32, "threads": 1}
    settings = "\n".join(
        [
            "from pathlib import Path",
            f"INPUTS, WORK, CACHE = Path({str(generated.root.parent)!r}), Path({str(tmp_path)!r}), Path('packs')",
            f"SLIDES, FOLDS, ONLY = None, 2, {only}",
            f"OPTIONS = {options}",
        ]
    )
    shown = run_notebook(KAGGLE, tmp_path, settings, skipped="install")
    check_submission(tmp_path / "submission.csv", read_sample(generated.sample))
    tables = [str(one["text/html"]) for one in shown if "text/html" in one]
    assert any("malignant" in one for one in tables) and any("AUC" in one for one in tables)
    assert sum("image/png" in one for one in shown) == 2


@pytest.mark.slow
def test_the_notebook_for_predictions_of_any_tool_combines_two_runs(
    generated: DataDir, finished: RunDir, tmp_path: Path
) -> None:
    settings = "\n".join(
        [
            "from pathlib import Path",
            f"DATA, OUT = Path({str(generated.root)!r}), Path('submission.csv')",
            f"RUNS = [Path({str(finished.root)!r}), Path('other')]",
        ]
    )
    (tmp_path / "other").mkdir()
    for table, column in ((finished.oof, "probability"), (finished.test, "probability")):
        lines = table.read_text("utf-8").splitlines()
        place = lines[0].split(",").index(column)
        changed = [",".join([*(row := line.split(","))[:place], f"{float(row[place]) ** 2:.6f}"]) for line in lines[1:]]
        (tmp_path / "other" / table.name).write_text("\n".join([lines[0], *changed]) + "\n", "utf-8")
    shown = run_notebook(OOF, tmp_path, settings)
    check_submission(tmp_path / "submission.csv", read_sample(generated.sample))
    assert sum("image/png" in one for one in shown) == 2 and sum("text/html" in one for one in shown) == 4
