"""Network architectures and their weights.

Other packages use:

- `cost`: `NetworkCost`, `estimate_hours`, `forward_gflop`, `network_cost`, `run_cost`
- `factory`: `create_model`, `fixed_side`, `fold_batch_norm`, `fold_every_batch_norm`, `own_normalisation`,
  `require_side`, `require_trainable`,
  `trained_network`
- `p4m`: `require_symmetric`, `untie_weights`
- `weights`: `find_weights`, `finish_fold`, `finished_sha256`, `load_finished`, `load_start`, `load_verified`,
  `read_weights`, `require_imagenet`, `save_weights`
"""
