"""Classify image files, serve the local web page, and export runs.

Other packages use:

- `app`: `listen`, `serve`
- `classify`: `Classification`, `ClassifyJob`, `FAST_STRIDE`, `NOTICE`, `classify_files`, `classify_image`,
  `explain_missing_range`
- `export`: `export_run`
- `http`: `bracketed`, `is_loopback`
- `images`: `decode_image`, `list_images`
- `page`: `all_as_json`, `render_section`, `write_page`, `write_rows`
"""
