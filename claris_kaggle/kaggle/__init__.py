"""Kaggle: its client, kernels, sessions, submissions and the launch of a whole entry."""
