"""Errors, files, paths, console output, config and time limits; standard library and tqdm only.

Other packages use:

- `config`: `CENTRE_SIZE`, `COMPILE_MODES`, `CUDNN_MODES`, `MIN_SIDE`, `PATCH_SIZE`, `POOLINGS`, `PRECISIONS`,
  `TrainConfig`, `add_config_flags`, `apply_preset`, `default_batch_size`, `default_learning_rate`, `generated_mark`,
  `is_generated`, `parse_config_flags`, `read_given_flags`, `require_resolution`, `require_same`, `update_config`,
  `without_metadata`
- `console`: `LOGGER`, `Progress`, `StatusLine`, `capture_native_code`, `format_command`, `format_duration`,
  `is_rank_zero`, `log_info`, `messages_on_stderr`, `silence_native_code`
- `errors`: `ClarisError`, `CudnnError`, `DataError`, `DiskError`, `ERROR_FILE_VARIABLE`, `KaggleError`,
  `OversizeError`, `PatchError`, `RunError`, `Stopped`, `TableError`, `TrainingError`, `UsageError`,
  `escape_unprintable`, `first_line`, `format_bytes`, `format_count`, `name_few`
- `files`: `create_folder`, `explain_disk_errors`, `explain_os_error`, `explain_unexpected_error`, `hold_lock`,
  `is_folder`, `read_json`, `replace_file`, `sha256_bytes`, `sha256_file`, `write_bytes`, `write_json`, `write_text`
- `notebook`: `html_fields`, `html_table`
- `findings`: `BAD`, `Finding`, `GOOD`, `WARNING`, `run_check`
- `paths`: `ARCHIVE_SUFFIXES`, `DataDir`, `ExportDir`, `FoldDir`, `FoldRunDir`, `RunDir`, `default_cache`,
  `recognise_fold`, `require_replaceable`, `require_suffix`, `shorten_path`
- `platforms`: `HOME`, `SHARED_MEMORY`, `STOP_SIGNALS`, `SUPPORTS_DDP`, `allocate`, `escape_unprintable_output`,
  `is_safe_name`, `link_or_copy`, `move_folder`, `replace`, `signal_name`, `sync_file`, `total_memory`, `write_at`
- `time_limit`: `Stopper`, `exit_process`, `exit_with_parent`, `parse_duration`, `restore_signals`
"""
