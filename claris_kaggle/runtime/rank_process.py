"""Read the job of one rank from a file and run it.

`distributed._launch_ranks` starts this module once per rank. So a script or a notebook can train in several processes:
its own main module is not run again.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from claris_kaggle.core.console import LOGGER, messages_on_stderr
from claris_kaggle.core.errors import ClarisError
from claris_kaggle.core.files import explain_unexpected_error, read_json, write_json
from claris_kaggle.core.time_limit import exit_process
from claris_kaggle.runtime.distributed import _write_error_for_parent


def _write_job(path: Path, entry: str, job: Mapping[str, object]) -> None:
    """Write the job file that all ranks read.

    Args:
        path: the new file.
        entry: function that each rank calls with the job, as `package.module:function`.
        job: JSON-serializable values.
    """
    write_json(path, {"entry": entry, "job": job, "level": LOGGER.getEffectiveLevel()})


def _run_rank(path: Path) -> int:
    """Run the job in the file on this rank. Return the exit code of the process."""
    content = read_json(path)
    with messages_on_stderr(content["level"]):
        try:
            module, name = content["entry"].split(":")
            getattr(importlib.import_module(module), name)(content["job"])
            return 0
        except ClarisError as error:
            return _report_failure(error)
        except Exception as error:
            if is_lost_peer(error):
                return 1  # the rank that failed first has reported the cause
            hint = "Run it again with --debug, or set the logger claris_kaggle to DEBUG, to see the traceback"
            return _report_failure(explain_unexpected_error(error, hint))


def _report_failure(error: ClarisError) -> int:
    """Write the error for the parent process. Return the exit code."""
    if LOGGER.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    _write_error_for_parent(error)
    return error.exit_code


def is_lost_peer(error: Exception) -> bool:
    """Return True if this process failed because another process of the group ended."""
    text = str(error)
    connection_lost = "Connection closed by peer" in text or "Connection reset by peer" in text or "Broken pipe" in text
    return "RANK" in os.environ and isinstance(error, RuntimeError) and connection_lost


if __name__ == "__main__":
    exit_process(_run_rank(Path(sys.argv[1])))
