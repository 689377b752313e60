"""Print a script for the shell that completes commands, flags, choices and paths. Run this again after an update.

example:
  claris completion bash --install
  claris completion zsh > ~/.zfunc/_claris     (a folder of $fpath, before compinit)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claris_kaggle.core.files import explain_disk_errors, write_text

HELP = "print a completion script for bash or zsh"
_INSTALL_PATHS = {"bash": "~/.local/share/bash-completion/completions/claris", "zsh": "~/.zfunc/_claris"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("shell", choices=["bash", "zsh"], help="which shell")
    parser.add_argument(
        "--install",
        action="store_true",
        help="write the script to its usual place in your home and print that path; creates the folder",
    )


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    from claris_kaggle.cli.main import _COMMANDS, _build_parser

    parser = _build_parser(*_COMMANDS)
    for action in _list_actions(parser):
        if action.type is Path:
            folder = "DIR" in str(action.metavar)
            action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
    script = shtab.complete(parser, args.shell)
    if not args.install:
        print(script)
        return
    path = Path(_INSTALL_PATHS[args.shell]).expanduser()
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, script.rstrip("\n") + "\n")
    print(path)


def _list_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of the parser and of its commands."""
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for sub in action.choices.values() for inner in _list_actions(sub)]
    return found
