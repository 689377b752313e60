"""Training runs, their learner and their checkpoints.

Other packages use:

- `checkpoint`: `is_whole_checkpoint`
- `setup`: `TrainJob`
- `train`: `train_run`
"""
