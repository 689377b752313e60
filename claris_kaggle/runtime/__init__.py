"""Processes, precision and the loading of batches onto a device."""
