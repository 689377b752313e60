"""Compare recorded responses of Kaggle with the simulated server: send the same requests, list the differences."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

from claris_kaggle.kaggle.wire_log import (
    _RECORDED_FIELDS,
    _TEXT_PLACEHOLDER,
    _USER,
    _hide_user,
    _read_body,
    _replace_values,
)
from tests.support.kaggle_double import FakeKaggle, with_manifest

STATUS, LISTING, PUSH = "GetKernelSessionStatus", "ListKernelSessionOutput", "SaveKernel"
SETTINGS = {"job": "probe", "mark": "mark-of-a-replay"}
# Values that depend on the moment, not on the rules.
OF_THE_MOMENT = {"log", "url", "kernelId", "nextPageToken"}


def replay(record: dict[str, Any], kaggle: FakeKaggle) -> list[str]:
    """Ask the double what the probe asked Kaggle, and return each difference in a line."""
    # Storage is not asked again, and neither are further pages, whose tokens are Kaggle's own.
    exchanges = [one for one in record["exchanges"] if "/" in one["route"] and not one["request"].get("pageToken")]
    prepare(exchanges, kaggle)
    found = []
    for number, one in enumerate(exchanges, 1):
        answered = ask(one, kaggle)
        found += [f"{number} {one['route']}: {difference}" for difference in compare(one, answered)]
    return found


def prepare(exchanges: list[dict[str, Any]], kaggle: FakeKaggle) -> None:
    """Let the double's session go as the recorded one went."""
    pushed = [one["request"]["slug"] for one in exchanges if one["route"].endswith(PUSH)]
    own = [one for one in exchanges if pushed and one["request"].get("kernelSlug") == pushed[0].split("/")[-1]]
    statuses = [one["answer"]["status"] for one in own if one["route"].endswith(STATUS) and "status" in one["answer"]]
    listings = [one["answer"].get("files") or [] for one in own if one["route"].endswith(LISTING)]
    names = [one["fileName"] for one in max(listings, key=len, default=[])]
    kaggle.statuses = statuses or kaggle.statuses
    files = {**with_manifest({name: b"{}" for name in names}, SETTINGS), **{name: b"{}" for name in names}}
    kaggle.produce = lambda settings: ({name: files[name] for name in names}, "")


def ask(exchange: dict[str, Any], kaggle: FakeKaggle) -> dict[str, Any]:
    """Send one recorded request to the double; its answer as a record has it."""
    address = urllib.parse.urlsplit(kaggle.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    route = exchange["route"].replace(_USER, "me")
    known = {"token": "a-token", "text": f"SETTINGS = {SETTINGS!r}"}
    request = {
        name: known.get(name, value) if value == _TEXT_PLACEHOLDER else value
        for name, value in exchange["request"].items()
    }
    body = json.dumps(request).replace(_USER, "me")
    headers = {"Content-Type": "application/json"}
    connection.request(exchange["method"], f"/api/v1/{route}", body if exchange["method"] == "POST" else None, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    kind = (response.getheader("Content-Type") or "").split(";")[0]
    answer = None if exchange["answer"] is None else _hide_user(_replace_values(_read_body(content)), "me")
    return {"status": response.status, "type": kind, "answer": answer}


def compare(recorded: dict[str, Any], answered: dict[str, Any]) -> list[str]:
    """Return where the double's answer is not the recorded one."""
    found = [
        f"{name} is {recorded[name]!r}, and the double's {answered[name]!r}"
        for name in ("status", "type")
        if recorded[name] != answered[name]
    ]
    return found or compare_values(recorded["answer"], answered["answer"], "answer")


def compare_values(recorded: Any, answered: Any, name: str) -> list[str]:
    """Return the differences of two values: kinds, names that either lacks, and what is kept of them."""
    if type(recorded) is not type(answered):
        return [f"{name} is a {type(recorded).__name__}, and the double's a {type(answered).__name__}"]
    if isinstance(recorded, list):
        first = [compare_values(recorded[0], answered[0], f"{name}[0]")] if recorded and answered else []
        return [one for part in first for one in part]
    if isinstance(recorded, dict):
        # Kaggle may say more than a client reads; only what we look at must be there on both sides.
        lacking = [
            f"{name}.{key} is not the double's" for key in recorded if key in _RECORDED_FIELDS and key not in answered
        ]
        invented = [f"{name}.{key} is the double's alone" for key in answered if key not in recorded]
        common = [compare_values(recorded[key], answered[key], f"{name}.{key}") for key in recorded if key in answered]
        return [*lacking, *invented, *(one for part in common for one in part)]
    last = name.rsplit(".", 1)[-1]
    if last in _RECORDED_FIELDS - OF_THE_MOMENT and recorded != answered:
        return [f"{name} is {recorded!r}, and the double's {answered!r}"]
    return []
