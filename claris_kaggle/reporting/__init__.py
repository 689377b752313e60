"""The report of a run: charts, galleries, pictures and templates.

Other packages use:

- `pictures`: `draw_heat`, `draw_map`, `jpeg_uri`
- `report`: `write_report`
- `templates`: `render_template`
"""
