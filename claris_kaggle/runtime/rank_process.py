"""The process of one rank: reads its job from a file and runs it.

`distributed.launch` starts it once for each rank, so that a script or a notebook can train on several processes without
a command line of its own, and without its main module being imported again.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from claris_kaggle.core.console import LOGGER, messages_on_stderr
from claris_kaggle.core.errors import ClarisError, first_line
from claris_kaggle.core.files import explain_os_error, read_json, write_json
from claris_kaggle.runtime.distributed import _leave_error


def _write_job(path: Path, entry: str, job: dict[str, Any]) -> None:
    """Write the job of all ranks.

    Args:
        path: the new file.
        entry: what a rank calls with the job, as `package.module:function`.
        job: plain values.
    """
    write_json(path, {"entry": entry, "job": job, "level": LOGGER.getEffectiveLevel()})


def _run_rank(path: Path) -> int:
    """Run the job of the file on this rank and return the exit code of the process."""
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
                return 1  # the rank that failed first has said why
            if isinstance(error, OSError) and error.errno:
                return _report_failure(explain_os_error(error, error.filename or "a file or the output"))
            hint = "Run it again with --debug, or with the logger claris_kaggle at DEBUG, to see where"
            return _report_failure(ClarisError(f"{type(error).__name__}: {first_line(error)}", "", hint))


def _report_failure(error: ClarisError) -> int:
    """Leave the error for the process that started the ranks; returns the exit code."""
    if LOGGER.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    _leave_error(error)
    return error.exit_code


def is_lost_peer(error: Exception) -> bool:
    """Return True if another process of the group went away, so that this one could not continue."""
    text = str(error)
    lost = "Connection closed by peer" in text or "Connection reset by peer" in text or "Broken pipe" in text
    return "RANK" in os.environ and isinstance(error, RuntimeError) and lost


if __name__ == "__main__":
    raise SystemExit(_run_rank(Path(sys.argv[1])))
