"""Training loop, checkpoints and run setup.

Other packages use:

- `checkpoint`: `is_whole_checkpoint`
- `setup`: `TrainJob`
- `train`: `train_run`
"""
