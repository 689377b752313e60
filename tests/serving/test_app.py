"""Test `claris serve`: the results of `claris classify`, only for this machine, and requests leave no files."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import http.client
import io
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.patches import read_patch
from claris_kaggle.inference.fold_models import FoldModels, load_trained
from claris_kaggle.serving.classify import NOTICE, ClassifyJob, classify_image
from claris_kaggle.serving.page import all_as_json
from tests.conftest import DEADLINE, environment, open_page

testclient = pytest.importorskip("starlette.testclient", reason="starlette is not here: pip install '.[dev]'")

from claris_kaggle.serving.app import _make_app, _UploadHandler  # noqa: E402
from claris_kaggle.serving.http import _MAX_NAME_LENGTH, _clean_name, bracketed, is_loopback  # noqa: E402
from claris_kaggle.serving.progress import _ImageProgress  # noqa: E402

Call = Callable[..., tuple[int, str, str]]
JOB = ClassifyJob(views=4, max_pixels=100_000)


@pytest.fixture(scope="module")
def trained(finished: RunDir) -> FoldModels:
    return load_trained(finished.root)


@pytest.fixture(scope="module")
def patch(generated: DataDir) -> Path:
    return sorted(generated.patches("test").iterdir())[0]


@pytest.fixture
def client(trained: FoldModels) -> Any:
    return testclient.TestClient(_make_app(_UploadHandler(trained, JOB), "127.0.0.1"), base_url="http://127.0.0.1:8000")


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> bytes:
    """A PNG of noise, which does not shrink."""
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is side x side."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def send(client: Any, content: bytes, name: str = "one.png", path: str = "/classify") -> Any:
    return client.post(path, files={"image": (name, content)})


def test_page_and_json_are_what_classify_answers(client: Any, trained: FoldModels, patch: Path) -> None:
    found = classify_image(trained, read_patch(patch), patch.name, JOB)
    answer = send(client, patch.read_bytes(), patch.name)
    assert answer.status_code == 200 and answer.json() == all_as_json(trained, 4, [found.to_json()], [])
    page = send(client, patch.read_bytes(), patch.name, "/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    for words in (found.answer, f"probability of malignant {found.probability:.3f}", patch.name, NOTICE, "3 folds"):
        assert words in page.text
    assert found.centre_share is not None and f"{found.centre_share:.0%}".replace("%", " %") in page.text
    assert page.text.count('<img src="data:image/jpeg;base64,') == page.text.count(' alt="') == 2


def test_a_larger_image_has_its_heat(client: Any) -> None:
    content = picture(200, 120)
    image = send(client, content).json()["images"][0]
    assert np.array(image["windows"]["probabilities"]).shape == (2, 5)
    page = send(client, content, path="/").text
    square = f"left: {image['left'] / 2}%; top: {round(image['top'] / 1.2, 2)}%; width: 48.0%; height: 80.0%"
    assert "All windows" in page and square in page


def test_the_page_alone_has_a_form_that_needs_no_script(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200 and NOTICE in page.text and "100,000 pixels" in page.text
    assert "<title>Classification of images - claris</title>" in page.text
    assert "The networks were trained on synthetic patches" in page.text
    assert '<form class="ask" method="post" action="/" enctype="multipart/form-data"' in page.text
    assert re.search(r'<label for="file">.*<input type="file" id="file" name="image" required', page.text, re.S)
    assert client.head("/").status_code == 200 and "set-cookie" not in page.headers


REFUSED = [
    (b"<html>", 422, "not a readable image"),
    (b"", 422, "no file was sent, or an empty one"),
    (picture(96, 96)[:2000], 422, "damaged or cut off"),
    (picture(95, 300), 422, "95 x 300 pixels; expected at least 96 x 96"),
    (picture(96, 96, "L"), 422, "grey of mode L"),
    (picture(400, 300), 413, "400 x 300 pixels; at most 100,000 pixels are allowed"),
    (bomb(60_000), 413, "at most 100,000 pixels are allowed"),
    (bytes(2_000_000), 413, "bytes; at most 100,000 pixels are allowed"),
]


@pytest.mark.parametrize(("content", "status", "words"), REFUSED, ids=[words[:20] for _, _, words in REFUSED])
def test_a_wrong_file_is_one_line_on_page_and_in_json(client: Any, content: bytes, status: int, words: str) -> None:
    answer = send(client, content)
    assert answer.status_code == status and answer.json()["images"] == []
    (fault,) = answer.json()["faults"]
    assert words in fault and "\n" not in fault
    page = send(client, content, path="/")
    assert page.status_code == status and words in page.text and "<section" not in page.text and "<form" in page.text


def test_several_images_are_classified_together(client: Any, trained: FoldModels, patch: Path) -> None:
    """A wrong image does not prevent the others."""
    names, contents = ("a.tif", "b.png", "c.png"), (patch.read_bytes(), b"<html>", picture(96, 96))
    files = [("image", one) for one in zip(names, contents, strict=True)]
    answer = client.post("/classify", files=files)
    assert answer.status_code == 200 and [one["name"] for one in answer.json()["images"]] == ["a.tif", "c.png"]
    alone = send(client, contents[0], "a.tif").json()["images"]
    assert answer.json()["images"][:1] == alone
    (fault,) = answer.json()["faults"]
    assert "b.png: not a readable image" in fault
    page = client.post("/", files=files)
    assert page.status_code == 200 and "<title>2 images - claris</title>" in page.text and "Overview" in page.text


def test_the_example_says_that_it_is_synthetic(client: Any) -> None:
    page = client.get("/example")
    assert page.status_code == 200 and page.text.count("<section id=") == 2
    assert "These two patches are synthetic" in page.text and "synthetic malignant patch" in page.text
    assert '<a href="/example">' in client.get("/").text and "http://127.0.0.1:8000/classify" in page.text


def test_what_is_no_form_with_files_is_refused(client: Any, patch: Path) -> None:
    one = ("image", ("a.tif", patch.read_bytes()))
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    for sent, status, words in (
        ({"data": {"image": "a.tif"}}, 400, "the request has no form"),
        ({"content": patch.read_bytes()}, 400, "the request has no form"),
        ({"files": [("file", one[1])]}, 400, "unknown form field: 'file'; expected a form"),
        ({"files": [one, ("b", one[1]), ("a", one[1])]}, 400, "unknown form field: 'a', 'b'; expected a form"),
        ({"files": [("file", one[1])]}, 400, "with 1 to 50 files in the field image. Name the field image"),
        ({"files": [one] * 51}, 400, "Too many files"),
        ({"files": [one], "data": {"more": "x"}}, 400, "Too many fields"),
        ({"content": b"--b\r\nContent-Disp", "headers": boundary}, 422, "no file was sent"),
        ({"content": b"nothing of the kind", "headers": boundary}, 400, "the form is invalid"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ):
        answer = client.post("/classify", **sent)
        assert answer.status_code == status and words in answer.json()["faults"][0], answer.text


def test_a_body_that_hides_its_length_is_counted(client: Any) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(100_000)

    answer = client.post("/classify", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413 and "more than" in answer.json()["faults"][0]


def test_a_name_is_text_and_the_file_never_on_disk(
    client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no-such-folder"))  # whoever wrote there would fail
    monkeypatch.chdir(tmp_path)
    content = picture(96, 96) + bytes(1_500_000)
    page = send(client, content, '../../etc/<script>alert("1")<b>.png', "/")
    assert page.status_code == 200 and "&lt;b&gt;.png</h2>" in page.text and page.text.count("<script") == 1
    answer = send(client, content, "C:\\scans\\..\\tumour \u202e.png")
    assert answer.json()["images"][0]["name"] == "tumour .png"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@given(st.text())
def test_any_name_becomes_a_plain_one(name: str) -> None:
    plain = _clean_name(name)
    assert 0 < len(plain) <= _MAX_NAME_LENGTH and plain.isprintable() and not {"/", "\\"} & set(plain)
    assert _clean_name(plain) == plain


def test_other_paths_and_methods_are_told_so(client: Any) -> None:
    for method, path, status in (
        ("GET", "/favicon.ico", 404), ("GET", "/../setup.py", 404), ("GET", "/%2e%2e/etc/passwd", 404),
        ("PUT", "/", 405), ("DELETE", "/classify", 405), ("GET", "/classify", 405), ("OPTIONS", "/", 405),
    ):  # fmt: skip
        answer = client.request(method, path)
        assert answer.status_code == status and answer.text.count("\n") == 1, path
        assert ("allow" in answer.headers) == (status == 405)


def test_only_the_names_of_this_machine_are_answered_on_loopback(client: Any, trained: FoldModels) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
        assert client.get("/", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "x@localhost", "localhost:x", ""):
        answer = client.get("/", headers={"host": host})
        assert answer.status_code == 421 and "form" not in answer.text, host
    open_to_all = testclient.TestClient(_make_app(_UploadHandler(trained, JOB), "0.0.0.0"))
    assert open_to_all.get("/", headers={"host": "lab.example"}).status_code == 200
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0", "::", "", "lab")] == [
        True
    ] * 3 + [False] * 4
    assert bracketed("::1") == "[::1]"


def test_every_answer_keeps_the_page_by_itself(client: Any) -> None:
    answers = [
        client.get("/"),
        client.get("/no"),
        client.put("/"),
        send(client, b""),
        send(client, bytes(2_000_000), path="/"),
        client.get("/", headers={"host": "evil.example"}),
    ]
    script = re.search(r"<script>(.*)</script>", answers[0].text, re.S)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; img-src data:;") and f"script-src 'sha256-{digest}'" in policy
        assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer" and "set-cookie" not in answer.headers
    assert not re.search(r'(src|href)="(?!data:|/example")', answers[0].text)


def test_the_log_has_method_path_status_and_time_alone(
    client: Any, patch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/a%0A%1b[31m?secret=1")
    send(client, patch.read_bytes(), "secret.tif")
    send(client, b"", "secret.tif", "/")
    said = capsys.readouterr()
    assert said.out == ""
    wanted = [r"GET /a%0A%1B%5B31m 404", "POST /classify 200", "POST / 422"]
    for line, words in zip(said.err.splitlines(), wanted, strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d {words} \d+\.\d\d s", line), line


def test_a_network_that_fails_is_an_answer_too(
    trained: FoldModels, patch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = dataclasses.replace(trained, models={0: torch.nn.Linear(1, 1)})
    client = testclient.TestClient(_make_app(_UploadHandler(broken, JOB), "127.0.0.1"), base_url="http://localhost")
    answer = send(client, patch.read_bytes())
    assert answer.status_code == 500 and re.fullmatch(
        r"The computation failed \(\w+\); claris serve --debug.*\n", answer.text
    )
    assert "nosniff" in answer.headers["x-content-type-options"]
    assert re.search(r"POST /classify 500 \w+Error \d", capsys.readouterr().err)


class Served:
    """The command in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "claris_kaggle", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
        self.address = self.process.stdout.readline().strip() if ready else ""
        assert re.fullmatch(r"http://\S+:\d+/", self.address), self.end(signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Its exit code, and what it had to say still."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def served(finished: RunDir) -> Iterator[Served]:
    server = Served("--run", finished.root)
    yield server
    code, out, err = server.end()
    assert (code, out) == (0, "") and "Warning" not in err and "Traceback" not in err, err


def test_two_who_ask_at_once_are_both_answered(served: Served, trained: FoldModels, generated: DataDir) -> None:
    paths = sorted(generated.patches("test").iterdir())[:4]

    def ask(path: Path) -> Any:
        with path.open("rb") as stream:
            answer = requests.post(f"{served.address}classify", files={"image": stream}, timeout=DEADLINE)
        return answer.json()["images"][0]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, paths))
    for path, answer in zip(paths, answers, strict=True):
        wanted = classify_image(trained, read_patch(path), path.name).probability
        assert answer["name"] == path.name and answer["probability"] == pytest.approx(wanted, abs=1e-6)


def test_a_result_is_downloaded_as_json_and_as_the_page_of_classify(
    call: Call, served: Served, finished: RunDir, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.png").write_text("<html>")
    files = [("image", (path.name, path.read_bytes())) for path in (patch, tmp_path / "page.png")]
    page = requests.post(served.address, files=files, timeout=DEADLINE).text
    links = re.findall(r'<a download="([^"]+)" href="data:([^;]+);base64,([^"]+)">([^<]+)</a>', page)
    assert [(name, kind, text) for name, kind, _, text in links] == [
        (f"{patch.name}.json", "application/json", "JSON"), (f"{patch.name}.html", "text/html", "HTML page"),
    ]  # fmt: skip
    values, saved = (base64.b64decode(content).decode() for _, _, content, _ in links)
    monkeypatch.chdir(patch.parent)
    code, shown, _ = call("classify", "--run", finished.root, patch.name, "--json", "--html", tmp_path / "alone.html")
    assert code == 0 and json.loads(values)["images"] == json.loads(shown)["images"]
    assert json.loads(values).keys() == json.loads(shown).keys() and "page.png" in json.loads(values)["faults"][0]
    faults = re.compile(r'<div class="faults".*?</div>\n', re.S)
    assert faults.search(saved) and faults.sub("", saved) == (tmp_path / "alone.html").read_text("utf-8")
    assert "Download" not in requests.get(served.address, timeout=DEADLINE).text


def test_progress_is_sent_while_a_large_image_is_classified(
    client: Any, patch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claris_kaggle.serving.app._POLL_SECONDS", 0.001)
    files = [("image", (name, one)) for name, one in (("a.tif", patch.read_bytes()), ("b.png", picture(300, 300)))]
    answer = client.post("/progress", files=files)
    *reports, last = map(json.loads, answer.text.splitlines())
    assert answer.status_code == 200 and last == {"page": client.post("/", files=files).text}
    shares = [one["share"] for one in reports]
    assert shares == sorted(shares) and shares[0] >= 0 and 0.5 <= shares[-1] <= 1
    assert re.fullmatch(r"image 2 of 2: \d+ of 64 windows(, about \S.* left)?", reports[-1]["text"])


def test_faults_and_failures_reach_the_page_that_waits_for_progress(
    client: Any, trained: FoldModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = send(client, b"<html>", path="/progress")
    assert answer.status_code == 422 and "not a readable image" in answer.json()["page"]
    broken = dataclasses.replace(trained, models={0: torch.nn.Linear(1, 1)})
    failing = testclient.TestClient(_make_app(_UploadHandler(broken, JOB), "127.0.0.1"), base_url="http://localhost")
    answer = send(failing, picture(96, 96), path="/progress")
    assert answer.status_code == 500 and answer.text.startswith("The computation failed (")

    async def after_a_report(self: Any, request: Any, report: Any) -> tuple[int, str]:
        await report(_ImageProgress())
        raise KeyError

    monkeypatch.setattr(_UploadHandler, "page_of_uploads", after_a_report)
    failing = testclient.TestClient(_make_app(_UploadHandler(trained, JOB), "127.0.0.1"), base_url="http://localhost")
    report, last = map(json.loads, send(failing, picture(96, 96), path="/progress").text.splitlines())
    assert report == {"share": 0, "text": "waiting"} and last["error"].startswith("The computation failed (KeyError)")


LARGE = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + picture(1500, 1500)
    + b"\r\n--b--"
)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_who_has_left_is_not_computed_for_and_a_signal_ends_it_with_exit_code_0_also_in_the_middle_of_an_answer(
    finished: RunDir, patch: Path, number: signal.Signals
) -> None:
    server = Served("--run", finished.root, "--host", "0.0.0.0" if number == signal.SIGINT else "::1")
    port = int(server.address.strip("/").rsplit(":", 1)[1])
    host, shown = ("127.0.0.1", "127.0.0.1") if number == signal.SIGINT else ("::1", "[::1]")
    address, form = f"http://{shown}:{port}/", {"content-type": "multipart/form-data; boundary=b"}
    leaver = http.client.HTTPConnection(host, port)
    leaver.request("POST", "/classify", LARGE, form)
    time.sleep(0.5)
    leaver.close()
    watcher = http.client.HTTPConnection(host, port)
    watcher.request("POST", "/progress", LARGE, form)
    reports = map(json.loads, watcher.getresponse())
    assert next(one for one in reports if one["share"] > 0)["share"] < 1
    watcher.close()
    hasty = http.client.HTTPConnection(host, port)
    hasty.putrequest("POST", "/")
    hasty.putheader("Content-Type", form["content-type"])
    hasty.putheader("Content-Length", "5000")
    hasty.endheaders(LARGE[:3000])
    hasty.close()
    with patch.open("rb") as stream:
        assert requests.post(f"{address}classify", files={"image": stream}, timeout=DEADLINE).ok
    assert requests.post(address, b"nothing", headers=form, timeout=DEADLINE).status_code == 400
    with socket.create_connection((host, port)) as asking:
        head = f"POST / HTTP/1.1\r\nHost: {shown}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        asking.sendall(f"{head}Content-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE)
        time.sleep(1)
        code, out, err = server.end(number)
    assert (code, out) == (0, "") and "Traceback" not in err and "Error" not in err
    assert sorted(line.split()[2:4] for line in err.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)) == [
        ["/", "-"], ["/", "400"], ["/", "499"], ["/classify", "200"], ["/classify", "499"],
        ["/progress", "499"],
    ]  # fmt: skip
    assert ("warning: http://0.0.0.0" in err) == (number == signal.SIGINT)
    assert f"{NOTICE} Ctrl-C ends it." in err


def test_a_port_in_use_and_wrong_flags_are_one_line(call: Call, finished: RunDir, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, shown, said = call("serve", "--run", finished.root, "--port", port)
    assert (code, shown) == (1, "") and said.count("\n") == 1
    assert (
        said.startswith(f"claris: port {port} of 127.0.0.1: {os.strerror(errno.EADDRINUSE)}")
        and "Give another --port" in said
    )
    for flags, words, wanted in (
        (["--port", "70000"], "70000 is above 65535", 2),
        (["--host", "no host"], "--host is 'no host'", 2),
        (["--views", "3"], "--views is 3", 2),
        (["--max-pixels", "5"], "--max-pixels is 5", 2),
    ):
        code, shown, said = call("serve", "--run", finished.root, "--port", "0", *flags)
        assert (code, shown) == (wanted, "") and words in said and said.count("\n") == 1
    code, _, said = call("serve", "--run", tmp_path, "--port", "0")
    assert code == 1 and "no config.json there" in said


@pytest.mark.parametrize(("module", "package"), [("starlette", "starlette"), ("python_multipart", "python-multipart")])
def test_without_its_packages_the_command_that_installs_them_is_named(
    call: Call, finished: RunDir, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] == module:
            monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    for name in ("app", "http", "progress"):
        monkeypatch.delitem(sys.modules, f"claris_kaggle.serving.{name}")
    code, shown, said = call("serve", "--run", finished.root)
    wanted = f"claris: the Python package {package} is not installed. Install it: pip install "
    assert (code, shown) == (1, "") and wanted in said.splitlines()[-1]


SECTION = "section .verdict"
DROP = """([content, name, count]) => {
    const bytes = Uint8Array.from(atob(content), one => one.charCodeAt(0)), transfer = new DataTransfer();
    for (let one = 0; one < count; one++) transfer.items.add(new File([bytes], name));
    for (const kind of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
    return document.getElementById("state").textContent }"""


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_in_a_browser_a_patch_is_chosen_and_its_answer_seen(
    browser: Any, served: Served, patch: Path, width: int, scheme: str
) -> None:
    page, faults = open_page(browser, served.address, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_label("Images").set_input_files(patch)
    page.get_by_role("button", name="Classify").click()
    page.wait_for_selector(SECTION)
    assert page.locator(SECTION).inner_text().split()[0] in ("benign", "malignant", "uncertain")
    assert page.title().startswith(page.locator(SECTION).inner_text().split()[0])
    drawn = page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth)")
    assert drawn == [96, 96] and not faults
    for kind, mark in (("JSON", b'{"notice": "For research use only.'), ("HTML page", b"<!doctype html>")):
        with page.expect_download() as download:
            page.get_by_role("link", name=kind).click()
        assert Path(download.value.path()).read_bytes().startswith(mark)
        assert download.value.suggested_filename == f"{patch.name}.{kind[:4].lower()}"
    assert page.locator(SECTION).is_visible() and not faults
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    page.close()


def test_in_a_browser_images_are_dropped(browser: Any, served: Served) -> None:
    page, faults = open_page(browser, served.address, 1280, "light")
    content = base64.b64encode(picture(200, 150)).decode()
    assert page.evaluate(DROP, [content, "scan.png", 51]) == "51 images; at most 50 are allowed."
    assert page.evaluate(DROP, [content, "<b>scan.png", 1]) == "Classifying <b>scan.png"
    page.wait_for_selector(SECTION)
    assert page.evaluate("document.activeElement.textContent") == "<b>scan.png"
    assert page.evaluate("document.images.length") == 3 and not faults
    page.close()


def test_in_a_browser_progress_is_shown_and_a_classification_cancelled(
    browser: Any, served: Served, patch: Path, tmp_path: Path
) -> None:
    (tmp_path / "large.png").write_bytes(picture(1500, 1500))
    page, faults = open_page(browser, served.address, 390, "light")
    page.set_input_files("#file", tmp_path / "large.png")
    page.get_by_role("button", name="Classify").click()
    text = page.locator("#progress span")
    text.filter(has_text=re.compile(r"^[\d,]+ of 2,025 windows, about .+ left$")).wait_for()
    assert 0 < page.evaluate("document.querySelector('progress').value") <= 1
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    assert text.is_hidden() and page.get_by_role("button", name="Classify").is_enabled()
    assert faults == [f"{served.address}progress"]  # the cancelled request
    page.set_input_files("#file", patch)
    page.get_by_role("button", name="Classify").click()
    page.wait_for_selector(SECTION)
    page.go_back()
    page.wait_for_function("!document.querySelector('section')")
    assert page.get_by_label("Images").is_enabled()
    page.close()


def test_in_a_browser_without_scripts_the_form_works(browser: Any, served: Served, patch: Path) -> None:
    page = browser.new_page()
    browser.new_cdp_session(page).send("Emulation.setScriptExecutionDisabled", {"value": True})
    page.goto(served.address)
    assert page.locator(".drop").is_hidden()
    page.set_input_files("#file", patch)
    page.get_by_role("button", name="Classify").click()
    page.wait_for_selector(SECTION)
    assert page.locator("#progress").is_hidden() and page.locator("#cancel").is_hidden()
    page.close()


def test_in_a_browser_a_fault_is_told_and_a_large_file_is_not_even_sent(
    browser: Any, served: Served, tmp_path: Path
) -> None:
    page, faults = open_page(browser, served.address, 360, "light")
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "large.tif").write_bytes(bytes(30_000_000))
    page.set_input_files("#file", tmp_path / "large.tif")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Classify").focus()
    page.keyboard.press("Enter")
    assert "30,000,000 bytes" in page.get_by_role("status").inner_text() and not faults
    page.set_input_files("#file", tmp_path / "page.png")
    page.get_by_role("button", name="Classify").click()
    page.get_by_role("alert").wait_for()
    assert "not a readable image" in page.get_by_role("alert").inner_text()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "alert"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_no_rule_of_accessibility_is_broken(
    browser: Any, served: Served, patch: Path, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not here: pip install '.[dev]'")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]}
    page, _ = open_page(browser, served.address, 1280, scheme)
    for step in ("form", "answer"):
        if step == "answer":
            page.set_input_files("#file", patch)
            page.get_by_role("button", name="Classify").click()
            page.wait_for_selector(SECTION)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        found = axe.Axe().run(page, options=rules)
        assert not found.response["violations"], found.generate_report()
    page.close()
