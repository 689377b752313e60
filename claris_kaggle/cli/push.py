"""Push a training, prediction or ensemble kernel that contains the library at the current commit.

Flags after -- are passed to claris train. After an interruption, run it again: it first searches for that push.

example:
  claris push train
  claris push train --fold 0 1 -- --epochs 8 --weights none
  claris push ensemble --input me/claris-train
  claris push train --build-only kernels/build --user me    (then: kaggle kernels push -p kernels/build)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from claris_kaggle.cli import options

if TYPE_CHECKING:
    from claris_kaggle.kaggle.kernel_source import KernelSettings

HELP = "push a kernel to Kaggle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("job", choices=["train", "predict", "ensemble"], help="which kernel")
    parser.add_argument("--slug", help="name of the kernel [claris-JOB]")
    parser.add_argument(
        "--fold", type=options._parse_count, nargs="+", default=[], metavar="K", help="folds to train [all]"
    )
    parser.add_argument("--time-limit", default="", metavar="TIME", help="time limit of the session [11h20m]")
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="REF", help="kernels whose output is attached as input"
    )
    options._add_attached_input_flags(parser)
    options._add_named_file_flags(parser)
    parser.add_argument(
        "--build-only", type=Path, metavar="DIR", help="write script and metadata to this folder without pushing"
    )
    parser.add_argument("--user", default="", help="with --build-only: Kaggle user name [from the login]")
    options._add_record_flag(parser)
    options._add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Build the kernel, push it unless an unconfirmed push of it has arrived, and print its name and version."""
    import json
    import tempfile
    import time

    from claris_kaggle.kaggle import kernel_push, kernel_source, preflight
    from claris_kaggle.kaggle.kernel_output import Kernel

    settings = _read_settings(args)
    preflight.check_session(args.job, settings)
    user, slug = _choose_owner(args), args.slug or f"claris-{args.job}"
    built = str(args.build_only or "")
    base = f"{user}/{slug}"
    job_arguments = {"job": args.job, "ref": base, "commit": kernel_source.commit_name(), "built": built}
    arguments = {**job_arguments, **settings.to_json()}
    push_token, ref = ("", "") if built else kernel_push.find_pending_push(args.record, arguments)
    pending = bool(push_token)
    if not pending:
        push_token = kernel_push.new_push_token(slug)
        ref = kernel_push.choose_kernel_name(args.record, base, push_token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.build_only or Path(temporary)
        kernel_source.compose_kernel(
            args.job, folder, settings, user=user, slug=ref.split("/")[1], push_token=push_token
        )
        # Recorded before the push: the push token finds a push whose response was lost.
        kernel = Kernel(ref=ref, version=0, push_token=push_token, pushed=time.time())
        kernel_push.record_push(args.record, kernel, job=args.job, asked=arguments, built=built)
        if args.build_only:
            print(json.dumps({"folder": str(folder), "ref": ref}) if args.json else folder)
            return
        kernel = kernel_push.push_recorded(folder, kernel, base, args.record, search_first=pending)
    kernel_push.record_push(args.record, kernel, job=args.job, base=base)
    result = {"ref": kernel.ref, "version": kernel.version, "push_token": kernel.push_token}
    print(json.dumps(result) if args.json else f"{kernel.ref} version {kernel.version}")


def _read_settings(args: argparse.Namespace) -> KernelSettings:
    """Return the settings of the kernel, after a check of all flags.

    Raises:
        UsageError: a flag does not fit the job, or has a wrong form.
    """
    from claris_kaggle.kaggle.kernel_source import KernelSettings, require_references

    _require_training(args)
    if args.time_limit:
        options._require_session(args.time_limit)
    require_references(args.input, "--input", (2, 3), "owner/slug")
    options._require_inputs(args)
    return KernelSettings(
        folds=tuple(args.fold),
        flags=tuple(options._check_train_flags(args.rest)),
        time_limit=args.time_limit,
        inputs=tuple(args.input),
        datasets=tuple(args.dataset),
        models=tuple(args.model_input),
        **options._read_named_files(args),
    )


def _require_training(args: argparse.Namespace) -> None:
    """Reject training flags for the other kernels, which would ignore them.

    Raises:
        UsageError: such flags are given; the message names them.
    """
    from claris_kaggle.core.errors import UsageError

    given = ["--fold"] * bool(args.fold) + ["flags after --"] * bool(args.rest)
    given += [f"--{name}-from" for name in ("weights", "slides", "folds", "extra") if vars(args)[f"{name}_from"]]
    if args.job != "train" and given:
        raise UsageError(f"{' and '.join(given)} for {args.job}", "they are for train only", "Remove them")


def _choose_owner(args: argparse.Namespace) -> str:
    """Return the kernel's owner: the account, or any given name for a kernel that is only built.

    Raises:
        UsageError: no name is given, and there is no account.
    """
    from claris_kaggle.core.errors import KaggleError, UsageError
    from claris_kaggle.kaggle import api

    if args.build_only and args.user:
        return str(args.user)
    try:
        return api.find_user()
    except KaggleError as error:
        if not args.build_only:
            raise
        raise UsageError(
            "--build-only without --user, and no account here", "expected a name", "Give --user"
        ) from error
