"""Run the command line `claris`: select the command, run it, and turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from claris_kaggle.core.console import is_rank_zero, messages_on_stderr
from claris_kaggle.core.errors import ERROR_FILE_VARIABLE, ClarisError, Stopped
from claris_kaggle.core.files import explain_unexpected_error
from claris_kaggle.core.platforms import escape_unprintable_output
from claris_kaggle.version import __version__

# In the order of a competition. Each is a module here with `HELP`, `add_arguments` and `run`.
_COMMANDS = (
    "demo", "doctor", "fetch", "check", "pack", "folds", "train", "predict", "pseudo", "ensemble", "submission",
    "report", "classify", "serve", "export", "launch", "push", "status", "pull", "submit", "ledger", "runs", "models",
    "completion",
)  # fmt: skip
# These commands pass the flags after -- to `claris train`.
_COMMANDS_WITH_TRAIN_FLAGS = ("push", "launch")
# Package names by import name, where the two differ.
_PIP_NAMES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
_EPILOG = """typical steps, from any folder:
  claris demo                                              run the full pipeline on synthetic patches
  claris fetch --out DIR                                   get the competition's files
  claris check --data DIR                                  check the competition's files
  claris pack --data DIR                                   create the cache of decoded patches
  claris folds --data DIR --out folds/five.csv             split the training patches
  claris train --data DIR --folds folds/five.csv --run runs/first
  claris predict --data DIR --run runs/first
  claris ensemble runs/first --data DIR --out submission.csv
  claris report runs/first --out report.html --data DIR
  claris classify --run runs/first IMAGE                  classify images
  claris serve --run runs/first                           classify on a local web page

on Kaggle's GPUs, with one command:
  claris launch first

all flags of a command:
  claris help train                                       or claris train --help
"""


class _OneLineParser(argparse.ArgumentParser):
    """A parser that reports errors in one line.

    Attributes:
        command_parser: the parser of the typed command. argparse reports that command's unknown flags with this parser.
    """

    command_parser: _OneLineParser | None = None

    def error(self, message: str) -> NoReturn:
        """Print the error, the nearest command or flag, and the help command, and exit with code 2."""
        if message.startswith("unrecognized"):
            if self.command_parser:
                self.command_parser.error(message)
            typed = next((word.split("=")[0] for word in message.split() if word.startswith("--")), "")
            similar = get_close_matches(typed, self._option_string_actions, 1)
            message += f"; did you mean {similar[0]}?" if similar else ""
        if "invalid choice" in message and "COMMAND" in message:
            typed = message.split("'")[1]
            similar = get_close_matches(typed, _COMMANDS, 1)
            message = f"unknown command {typed!r}" + (f"; did you mean {similar[0]}?" if similar else "")
        if message.startswith("argument --fold:") and ".csv" in message:
            message += "; did you mean --folds?"
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"{self.prog}: {message}{end} See {self.prog} --help\n")


def _build_parser(*commands: str) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the flags of the named ones."""
    parser = _OneLineParser(
        prog="claris",
        description="Histopathologic Cancer Detection, from the competition's files to a checked submission.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"claris {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        module = importlib.import_module(f"claris_kaggle.cli.{name}")
        sub = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in commands:
            parser.command_parser = sub
            module.add_arguments(sub)
            sub.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 usage error, 3 time limit or interrupt."""
    escape_unprintable_output(sys.stdout, sys.stderr)
    arguments = list(sys.argv[1:] if argv is None else argv)
    with messages_on_stderr(logging.DEBUG if "--debug" in arguments else logging.INFO):
        return _run_command(arguments)


def _run_command(arguments: list[str]) -> int:
    """Run the command line with messages on stderr, and return its exit code."""
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command == "help":  # claris help train
        index = arguments.index("help")
        return _run_command([*arguments[index + 1 : index + 2], "--help"])
    if not arguments:
        _build_parser().print_help()
        return 2
    try:
        own_arguments, train_flags = (
            _split_rest(arguments) if command in _COMMANDS_WITH_TRAIN_FLAGS else (arguments, [])
        )
        args = _build_parser(command or "").parse_args(own_arguments)
        args.rest, args.typed = train_flags, own_arguments
        _expand_homes(args)
        module = importlib.import_module(f"claris_kaggle.cli.{args.command}")
        code = int(module.run(args) or 0)
        sys.stdout.flush()  # so that a full disk is reported as such
        return code
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _report_error(Stopped("stopped by Ctrl-C", "", "Run the same command to resume"), arguments)
    except BrokenPipeError:
        _drop_output()  # the reader has closed the pipe
        return 1
    except ClarisError as error:
        return _report_error(error, arguments)
    except ModuleNotFoundError as error:
        return _report_error(_explain_missing_package(error), arguments)
    except Exception as error:
        return _report_unexpected_error(error, arguments)


def _expand_homes(args: argparse.Namespace) -> None:
    """Expand a leading ~ in all paths. Shells do not expand it in --out=~/FILE or inside quotes."""
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, _expand_home(value))
        elif isinstance(value, list):
            setattr(args, name, [_expand_home(item) if isinstance(item, Path) else item for item in value])


def _expand_home(path: Path) -> Path:
    """Return the path with ~ expanded; unchanged if ~ is part of a file name."""
    try:
        return path.expanduser()
    except RuntimeError:  # there is no user of that name
        return path


def _split_rest(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after the first --."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:index], arguments[index + 1 :]


def _report_error(error: ClarisError, arguments: Sequence[str]) -> int:
    """Print the error as one line on stderr, and return its exit code. Only the main process reports `Stopped`."""
    if "--debug" in arguments:
        traceback.print_exc()
    line = " ".join(str(error).split())
    if is_rank_zero() or not isinstance(error, Stopped):
        print(f"claris: {line}", file=sys.stderr, flush=True)
    if ERROR_FILE_VARIABLE in os.environ:
        with contextlib.suppress(OSError):  # the error is already printed
            Path(os.environ[ERROR_FILE_VARIABLE]).write_text(line, "utf-8")
    return error.exit_code


def _report_unexpected_error(error: Exception, arguments: Sequence[str]) -> int:
    """Report an unexpected error with its type, its text and a hint, and return the exit code."""
    if "RANK" in os.environ:  # started by the user's own torchrun
        from claris_kaggle.runtime.rank_process import is_lost_peer

        if is_lost_peer(error):
            return 1  # the rank that failed first reports the error
    if isinstance(error, OSError) and error.errno and error.filename is None:
        _drop_output()  # stdout itself may have failed
    hint = "" if "--debug" in arguments else "Run it again with --debug to see the traceback"
    return _report_error(explain_unexpected_error(error, hint), arguments)


def _drop_output() -> None:
    """Redirect stdout to the null device, so that Python does not fail again when it flushes at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _find_missing(requirements: Sequence[str]) -> list[str]:
    """Return the required packages that are not installed, from lines of the package's metadata."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for line in requirements:
        name = re.match(r"[\w.-]+", line)
        if name and ";" not in line:  # no extra, and for every system
            try:
                version(name[0])
            except PackageNotFoundError:
                missing.append(name[0].lower())
    return missing


def _explain_missing_package(error: ModuleNotFoundError) -> ClarisError:
    """Return the error for a missing package, with the command that installs it or the extra that contains it."""
    from importlib.metadata import PackageNotFoundError, requires

    module = (error.name or "").split(".")[0]
    package = _PIP_NAMES.get(module, module.replace("_", "-"))
    try:
        requirements = requires("claris_kaggle") or []
    except PackageNotFoundError:  # the library was copied without its metadata, as in a kernel
        requirements = []
    matches = (re.match(r"([\w.-]+).*extra == .(\w+)", line) for line in requirements)
    extras = [match[2] for match in matches if match and match[1].lower() == package]
    others = [name for name in _find_missing(requirements) if name != package]
    what = f"'claris_kaggle[{extras[0]}]'" if extras else " ".join([package, *others])
    return ClarisError(f"the Python package {package} is not installed", "", f"Install it: pip install {what}")
