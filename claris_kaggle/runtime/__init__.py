"""Processes, devices, precision and data loading.

Other packages use:

- `cudnn_fallback`: `DEFAULT_MODE`, `convert_cudnn_failures`, `move_network`, `run_ranks`
- `distributed`: `World`, `any_rank`, `choose_nproc`, `first_text`, `from_main`, `gather_rows`, `hold_for_all`,
  `join_world`, `share_buffers`, `under_torchrun`, `was_launched`
- `jobs`: `Job`, `torch_settings`
- `loading`: `fitting_workers`, `load_in_order`, `send_ahead`
- `precision`: `DTYPES`, `choose_precision`, `suggest_precision`, `usable_precision`
- `rank_process`: `is_lost_peer`
"""
