"""Test the ledger: an empty file is read as no ledger, and another table is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from claris_kaggle.core.errors import TableError
from claris_kaggle.ensembling.ledger import read_ledger

HEADER = "time,ref,file,sha256,runs,commit,oof_auc,oof_low,oof_high,public,private,status\n"


def test_a_ledger_without_lines_is_empty_and_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(HEADER)
    assert read_ledger(path) == []
    path.write_text("id,label\na,1\n")
    with pytest.raises(TableError, match="Restore it from git, or move it"):
        read_ledger(path)
