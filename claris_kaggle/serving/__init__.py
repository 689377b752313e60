"""Classification of image files, its page and server, and exports.

Other packages use:

- `app`: `listen`, `serve`
- `classify`: `Classification`, `ClassifyJob`, `NOTICE`, `classify_files`, `classify_image`
- `export`: `export_run`
- `http`: `bracketed`, `is_loopback`
- `images`: `decode_image`, `list_images`
- `page`: `all_as_json`, `render_section`, `write_page`
"""
