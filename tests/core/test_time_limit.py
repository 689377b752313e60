"""Test time limits: when training stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from claris_kaggle.core.time_limit import Stopper
from tests.conftest import ROOT


def test_processes_that_are_started_when_the_time_is_up_get_a_limit_to_stop_at() -> None:
    assert Stopper().limit_from_now() is None
    assert Stopper(3600).limit_from_now() == pytest.approx(3600, abs=1)
    late = Stopper(0.001)
    late.start -= 10
    assert late.limit_from_now() == 1.0
    assert Stopper(1.0).reason() == "" and late.reason() == "the time limit"


def test_handlers_of_signals_are_restored_when_the_work_ends() -> None:
    kept, stopper = signal.getsignal(signal.SIGTERM), Stopper()
    with stopper.listen():
        signal.raise_signal(signal.SIGTERM)
    assert stopper.reason() == "SIGTERM" and signal.getsignal(signal.SIGTERM) is kept


def test_work_in_another_thread_leaves_signals_alone() -> None:
    kept, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Stopper().listen():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [kept]


def test_what_will_not_come_again_is_no_work_to_keep_time_for() -> None:
    stopper = Stopper(100.0)
    stopper.last_tick -= 50
    stopper.skip_interval()
    stopper.tick()
    assert stopper.slowest_step < 1 and not stopper.reason()
    stopper.last_tick -= 80
    stopper.tick()
    assert stopper.reason() == "the time limit"


@pytest.mark.parametrize(("rank", "code"), [({"RANK": "0"}, 3), ({}, 7)], ids=["a rank", "a single process"])
def test_a_rank_exits_without_the_clean_up_in_which_threads_of_torch_abort_it(rank: dict[str, str], code: int) -> None:
    program = (
        "import os\nfrom claris_kaggle.core.time_limit import exit_process\n"
        "class Destroyed:\n    def __del__(self, end=os._exit):\n        end(7)\n"
        "kept = Destroyed()\nprint('done')\nexit_process(3)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run([sys.executable, "-c", program], env=environment | rank, cwd=ROOT, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.split()) == (code, [b"done"])
