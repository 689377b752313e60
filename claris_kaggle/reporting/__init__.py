"""Create the HTML report of runs: charts, galleries, images and templates.

Other packages use:

- `pictures`: `MAP_LIMITS`, `data_uri`, `draw_heat`, `draw_map`, `jpeg_uri`
- `plots`: `plot_calibration`, `plot_roc`, `plot_top_losses`
- `report`: `write_report`
- `templates`: `render_template`
"""
