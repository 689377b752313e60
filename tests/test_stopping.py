"""When to stop."""

from __future__ import annotations

from claris_kaggle.stopping import Stopper, parse_duration


def test_processes_that_are_started_when_the_time_is_up_get_a_limit_to_stop_at() -> None:
    assert Stopper().flags() == []
    assert Stopper(3600).flags() == ["--time-limit", "3600s"]
    late = Stopper(0.001)
    late.start -= 10
    assert late.flags() == ["--time-limit", "1s"] and parse_duration(late.flags()[1]) == 1.0
    assert Stopper(1.0).reason() == "" and late.reason() == "the time limit"
