"""Combine runs, write and check submission files, and keep the record of submissions.

Other packages use:

- `combine`: `CalibrationEvidence`, `Ensemble`, `EnsembleEvidence`, `combine`
- `comparison`: `RunComparison`, `SubmissionPair`, `compare_runs`, `compare_submissions`
- `ensemble_runs`: `EnsembleResult`, `describe_run`, `ensemble_runs`
- `ledger`: `Agreement`, `LedgerEntry`, `MIN_SCORED`, `describe_agreement`, `read_ledger`, `record_submission`,
  `sort_best_first`
- `pseudo_labels`: `PseudoSummary`, `make_pseudo_labels`
- `run_list`: `RunSummary`, `find_best_run`, `list_runs`
- `runs`: `Run`, `add_slides`, `explain_split`, `label_runs`, `load_run`, `name_auc`, `suggest_single_fold`
- `submission_file`: `SubmissionSummary`, `check_submission`, `write_submission`
"""
