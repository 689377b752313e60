"""The page of injected faults: plain names for tests that exist."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from benchmarks.reliability import SHOWN, SUITES, read_case
from tests.conftest import ROOT


def test_every_name_that_is_shown_in_another_way_is_that_of_a_test() -> None:
    text = "".join((ROOT / suite).read_text("utf-8") for suite in SUITES)
    assert set(SHOWN) <= {name.replace("_", " ") for name in re.findall(r"^def test_(\w+)", text, re.M)}


def test_a_case_has_the_plain_name_of_its_test_and_its_fault() -> None:
    case = read_case(ElementTree.fromstring('<testcase name="test_repaired[seal missing]"/>'))
    assert case[:3] == ("damaged files are repaired", "seal missing", True)
