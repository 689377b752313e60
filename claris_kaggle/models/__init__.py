"""Network architectures and their weights.

Other packages use:

- `factory`: `create_model`, `fold_batch_norm`, `own_normalisation`, `require_side`, `trained_network`
- `p4m`: `require_symmetric`, `untie_weights`
- `pooling`: `GeM`, `LEAST_VALUE`
- `sources`: `canonical_name`, `portable_name`, `read_architecture`
- `weights`: `find_weights`, `finish_fold`, `finished_sha256`, `load_finished`, `load_start`, `load_verified`,
  `read_weights`, `save_weights`
"""
