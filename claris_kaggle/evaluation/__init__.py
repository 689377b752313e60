"""Metrics, calibration, intervals of AUCs, and prediction files."""
