"""Runs combined into one, submission files, and the record of submissions."""
