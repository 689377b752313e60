"""Metrics, calibration, confidence intervals of the AUC, and prediction files.

Other packages use:

- `auc_intervals`: `Comparison`, `MeasuredAuc`, `measure`
- `calibration`: `CalibrationCurve`, `apply_temperature`, `calibration_curve`, `fit_temperature`, `nested_temperature`
- `metrics`: `Metrics`, `auc`, `clip_probabilities`, `log_loss`, `midranks`, `require_probabilities`, `summary`
- `predictions`: `Oof`, `TestPredictions`, `check_oof`, `parse_columns`, `read_oof`, `read_test`, `write_oof`,
  `write_run_oof`, `write_test`
- `resemblance`: `PatchStatistics`, `has_tissue`
- `run_metrics`: `FoldMetrics`, `OverallMetrics`, `SlideMetrics`, `explain_pooling`, `gather_run`,
  `is_generated_run`, `run_metrics`, `slide_metrics`
"""
