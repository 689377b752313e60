"""Training loop, checkpoints and run setup.

Other packages use:

- `checkpoint`: `is_whole_checkpoint`
- `setup`: `TrainJob`, `check_network`, `new_config`
- `train`: `train_run`
"""
