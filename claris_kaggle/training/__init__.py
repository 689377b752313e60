"""Training runs, their learner and their checkpoints."""
