"""Metrics, calibration, confidence intervals of the AUC, and prediction files.

Other packages use:

- `auc_intervals`: `Comparison`, `compare_aucs`, `estimate_auc`, `measure`
- `calibration`: `apply_temperature`, `calibration_curve`, `calibration_error`, `fit_temperature`,
  `nested_temperature`
- `metrics`: `auc`, `clip_probabilities`, `log_loss`, `summary`
- `predictions`: `Oof`, `TestPredictions`, `check_oof`, `read_oof`, `read_test`, `write_oof`, `write_run_oof`,
  `write_test`
- `run_metrics`: `gather_run`, `run_metrics`, `run_tables`, `slide_metrics`
"""
