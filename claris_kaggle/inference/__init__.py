"""Predictions of trained networks, and the evidence for them."""
