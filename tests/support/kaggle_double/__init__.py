"""A server on loopback that answers Kaggle's client as strictly as Kaggle is known to, and fails on request.

`wire` checks each request against the client's own types, `kernel_service` and `competition_service` hold what Kaggle
knows and answer as it does, `faults` has what can go wrong as data, `server` speaks HTTP. Each rule names its source:
CLIENT is the source of kaggle 2.2.5 and kagglesdk 0.1.38, CLI-n an issue or pull request of Kaggle/kaggle-cli, USERS
what users of the real service wrote down, PAGES the documentation at kaggle.com/docs.
"""

from tests.support.kaggle_double.faults import FINAL, PASSING, Fault
from tests.support.kaggle_double.kernel_service import MANIFEST, Files, Version, log_of, with_manifest
from tests.support.kaggle_double.server import CANARY, FakeKaggle

__all__ = [
    "CANARY",
    "FINAL",
    "MANIFEST",
    "PASSING",
    "FakeKaggle",
    "Fault",
    "Files",
    "Version",
    "log_of",
    "with_manifest",
]
