"""Run Kaggle's real client in this process, for tests with many calls."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from claris_kaggle.cli.main import main
from claris_kaggle.core import platforms
from claris_kaggle.kaggle import api


class ClientHere:
    """Stands for the module subprocess where `claris_kaggle.kaggle.api` starts the client."""

    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def run(command: list[str], *, input: str, **named: Any) -> subprocess.CompletedProcess[str]:
        """Make the call of this command in this process."""
        import requests

        from claris_kaggle.kaggle import client_process

        sys.modules.pop("kaggle", None)  # each process logs in
        send = requests.Session.send  # a process records its own requests only
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
                answer = client_process._run_method(command[-1], input)
        finally:
            requests.Session.send = send  # type: ignore[method-assign]
        return subprocess.CompletedProcess(command, 0, stdout=answer, stderr=said.getvalue())


class ForkedCommand:
    """`claris` in a process group of its own, which makes the client's calls itself.

    It is forked from this process, so that nothing is imported again. It cannot train: autograd is not for forks.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Start the command in that folder."""
        self.printed = tuple(folder / name for name in (".stdout", ".stderr"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the double answers in threads of this process
            self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(folder, arguments))
            self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def _run(self, folder: Path, arguments: tuple[str, ...]) -> None:
        os.setsid()
        os.chdir(folder)
        for number in platforms.STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number, path in enumerate(self.printed, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115, PTH123
        api.subprocess = ClientHere  # type: ignore[assignment, attr-defined]
        code = main([*arguments])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    @property
    def returncode(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        return self.process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; returns what it printed to stdout and stderr."""
        self.process.join(timeout)
        assert self.returncode is not None, "the command did not end"
        out, err = (path.read_text() for path in self.printed)
        return out, err
