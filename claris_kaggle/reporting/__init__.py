"""Create the HTML report of runs: charts, galleries, images and templates.

Other packages use:

- `pictures`: `draw_heat`, `draw_map`, `jpeg_uri`
- `report`: `write_report`
- `templates`: `render_template`
"""
