"""Errors, files, paths, console output, config and time limits; standard library and tqdm only."""
