"""Test the functions of the package with paths as text, as they are typed in a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest

import claris_kaggle as ck


def test_every_path_may_be_text(
    generated: ck.DataDir, cache: Path, finished: ck.RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, run = str(generated.root), str(finished.root)
    sample_ids = ck.read_sample(f"{data}/sample_submission.csv")
    assert ck.check_data(data).faults == []
    assert ck.make_fold_file(data, "folds.csv", slides=f"{data}/slides.csv", k=3, cache=str(cache)).k == 3
    assert len(ck.ensure_pack(f"{data}/test", sample_ids, str(cache)).ids) == len(sample_ids)
    assert ck.load_run(run).oof.ids == ck.read_oof(f"{run}/oof.csv").ids
    assert ck.ensemble_runs([run], data, "submission.csv", keep="ensemble").submission == Path("submission.csv")
    assert ck.check_submission("submission.csv", sample_ids).rows == len(sample_ids)
    ck.write_submission("again.csv", ck.read_test("ensemble/test.csv"), sample_ids, {})
    assert Path("again.csv").read_bytes() == Path("submission.csv").read_bytes()
    assert ck.make_pseudo_labels([run], data, "pseudo.csv", confidence=0.51).file == Path("pseudo.csv")
    assert ck.write_report([run], "report.html", data=data, cache=str(cache)).exists()
    ck.export_run(run, "export")
    assert Path("export/SHA256SUMS").exists()
    patch = next(generated.patches("test").iterdir())
    (answer,) = ck.classify_files(ck.load_trained("export"), [str(patch)])
    assert isinstance(answer, ck.Classification)


def test_patches_can_be_generated_in_a_folder_given_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ck.generate("patches", train=20, test=4, slides=5) == Path("patches")
