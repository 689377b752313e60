"""Measurements that write the pages of `docs/`."""
