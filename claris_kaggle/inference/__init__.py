"""Prediction, test-time augmentation and evidence maps.

Other packages use:

- `evidence`: `Evidence`, `Float32Array`, `NO_MAP`, `centre_share`, `explain`
- `fold_models`: `EXPORT_FORMAT`, `EnsemblePrediction`, `FoldModels`, `Trained`, `load_trained`, `predict_ensemble`,
  `sums_text`
- `forward`: `block_size`, `predict_ids`
- `predict`: `PredictJob`, `predict_run`
- `tta`: `average_views`, `require_views`
"""
