"""Show the status of a pushed kernel version (default: the last one pushed).

With --follow, wait until the session ends and print its progress.

Exit code 0 if it is queued, running or complete, 1 if it failed or was cancelled.

example:
  claris status
  claris status me/claris-train --json
  claris status --follow
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options

HELP = "show the status of a pushed kernel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("ref", nargs="?", default="", metavar="REF", help="kernel, as owner/slug [the last one pushed]")
    parser.add_argument("--follow", action="store_true", help="wait until it ends and show its progress")
    options._add_poll_flag(parser, 60, "with --follow: ")
    options._add_record_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state, and return 1 if the session failed."""
    import json

    from claris_kaggle.kaggle import kernel_output, kernel_push
    from claris_kaggle.kaggle.session_progress import follow_session

    kernel = kernel_push.find_recorded_push(args.record, args.ref)
    status, message = follow_session(kernel, args.poll) if args.follow else kernel_output.kernel_status(kernel)
    failed = status in kernel_output.END_STATES and status != "COMPLETE"
    error = (
        kernel_output.explain_session_end(kernel, status, message, kernel_output.session_log(kernel))
        if failed
        else None
    )
    if error and not args.json:
        raise error
    message = error.found if error else message
    result = {"ref": kernel.ref, "version": kernel.version, "status": status, "message": message}
    text = "not listed yet; this can take some minutes" if status == kernel_output.NOT_LISTED else status.lower()
    print(json.dumps(result) if args.json else f"{kernel.ref} version {kernel.version}: {text}")
    return int(failed)
