"""The report of a run: charts, galleries, pictures and templates."""
