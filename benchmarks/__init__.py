"""Benchmarks. They write pages of `docs/`."""
