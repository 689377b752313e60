"""Start a local web page that classifies dropped images and shows evidence maps, as claris classify does.

Prints the address to stdout when it is ready. Ctrl-C stops it. Uploads are processed in memory and never saved.
The page accepts up to 50 images at once, and /example shows two synthetic patches. Links on the page download a result
as JSON and as an HTML page, as claris classify --json and --html write them.
Programs can POST to /classify and receive JSON: curl --form image=@patch.tif http://127.0.0.1:8000/classify
For research use only. Not for diagnosis.

example:
  claris serve --run runs/first
  claris serve --run runs/first --port 8080 --views 1 --max-pixels 10000000
"""

from __future__ import annotations

import argparse

from claris_kaggle.cli import options
from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import format_count

HELP = "start a local web page that classifies dropped images"
_EXPOSURE_WARNING = (
    "warning: {} can be reached from other machines. Anyone who can reach it can use it, without encryption or login"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    options._add_run_flag(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1: this machine only]")
    parser.add_argument("--port", type=_parse_port, default=8000, metavar="N", help="port; 0 selects a free one [8000]")
    options._add_classify_flags(parser, max_pixels=2_500_000)


def run(args: argparse.Namespace) -> None:
    """Load the networks once, print the page's address, and serve until a signal arrives."""
    import signal

    from claris_kaggle.serving.app import listen, serve
    from claris_kaggle.serving.classify import NOTICE
    from claris_kaggle.serving.http import bracketed, is_loopback

    with listen(args.host, args.port) as listener:
        trained, job = options._load_classifier(args)
        address = f"http://{bracketed(args.host)}:{listener.getsockname()[1]}/"
        if not is_loopback(args.host):
            log_info(_EXPOSURE_WARNING.format(address))
        log_info(
            f"{trained.config.model}, {format_count(len(trained.models), 'fold')} of {trained.name}. "
            f"{NOTICE} Ctrl-C ends it."
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(address, flush=True)
        serve(trained, job, listener, args.host, debug=args.debug)


def _parse_port(text: str) -> int:
    """Return the text as a port number."""
    value = options._parse_count(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text} is above 65535")
    return value
