"""Network architectures and their weights.

Other packages use:

- `catalogue`: `list_networks`
- `cost`: `NetworkCost`, `T4_GIGABYTES`, `estimate_hours`, `forward_gflop`, `network_cost`, `run_cost`,
  `run_step_gigabytes`
- `factory`: `create_model`, `fixed_side`, `fuse_batch_norm`, `fuse_every_batch_norm`, `network_options`,
  `pretrained_normalisation`, `require_side`, `require_trainable`, `trained_network`
- `p4m`: `require_symmetric`, `untie_weights`
- `pooling`: `GeM`, `MIN_VALUE`
- `sources`: `canonical_name`, `portable_name`, `read_architecture`, `require_imagenet`
- `weights`: `find_weights`, `finish_fold`, `finished_sha256`, `load_finished`, `load_initial_weights`, `load_verified`,
  `read_weights`, `save_weights`
"""
