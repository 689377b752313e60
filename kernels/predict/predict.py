"""Predict OOF and test with the input runs, with eight test-time augmentation views, on Kaggle's two T4 GPUs.

`claris push predict` sets SETTINGS and BUNDLE; kernels/README.md describes how to do it by hand.
"""

import base64
import io
import os
import sys
import tempfile
import zipfile

SETTINGS = {"job": "predict", "folds": [], "flags": [], "time_limit": "11h20m", "gpus": 2}
BUNDLE = ""

if not BUNDLE:
    sys.exit("the library is not in this script yet: claris push predict --build-only DIR")
folder = tempfile.mkdtemp(prefix="claris-")
zipfile.ZipFile(io.BytesIO(base64.b64decode(BUNDLE))).extractall(folder)
sys.path.insert(0, folder)
os.environ["PYTHONPATH"] = folder

from claris_kaggle.kaggle.session import run_session  # noqa: E402

sys.exit(run_session(SETTINGS))
