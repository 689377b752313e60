"""Processes, devices, precision and data loading.

Other packages use:

- `cudnn_fallback`: `DEFAULT_MODE`, `convert_cudnn_failures`, `move_network`, `run_ranks`
- `distributed`: `World`, `broadcast_buffers`, `broadcast_from_rank_zero`, `choose_nproc`, `count_gpus`,
  `first_nonempty_text`, `gather_rows`, `join_world`, `launched_by_claris`, `lock_on_rank_zero`, `max_over_ranks`,
  `under_torchrun`
- `jobs`: `Job`, `torch_settings`
- `loading`: `limit_workers`, `load_in_order`, `prefetch_to_device`
- `precision`: `autocast`, `choose_precision`, `suggest_precision`, `usable_precision`
- `rank_process`: `is_lost_peer`
"""
