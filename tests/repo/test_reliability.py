"""Test `docs/reliability.md`: its guarantees are the names of the fault-injection tests."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.reliability import read_case


def test_a_case_has_the_name_of_its_test_and_its_fault() -> None:
    case = read_case(ElementTree.fromstring('<testcase name="test_damaged_files_are_repaired[seal missing]"/>'))
    assert case[:3] == ("damaged files are repaired", "seal missing", True)
