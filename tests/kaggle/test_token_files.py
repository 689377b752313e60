"""Test token files as browsers and editors write them: the fault is named, and no part of the content is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claris_kaggle.core.findings import BAD
from claris_kaggle.kaggle import account
from claris_kaggle.kaggle.token_files import _explain_token_files
from tests.support.kaggle_double import FakeKaggle

USER, KEY = "ada-lovelace", "0123456789abcdef" * 2
GOOD = json.dumps({"username": USER, "key": KEY})
TOKEN = "KGAT_0123456789abcdef0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home folder with an empty .kaggle folder. Kaggle's environment variables are removed."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".kaggle").mkdir()
    return tmp_path


def dump_json(**values: object) -> bytes:
    return json.dumps(values).encode()


# name: (path below the home folder, content or None for a folder, words of the message)
FAULTY: dict[str, tuple[str, bytes | None, str]] = {
    "BOM": (".kaggle/kaggle.json", GOOD.encode("utf-8-sig"), "kaggle.json begins with a byte-order mark; save it as"),
    "UTF-16": (".kaggle/kaggle.json", GOOD.encode("utf-16"), "kaggle.json is text in UTF-16; save it as UTF-8"),
    "UTF-16 without BOM": (".kaggle/kaggle.json", GOOD.encode("utf-16-be"), "is text in UTF-16"),
    "Latin-1": (".kaggle/kaggle.json", GOOD.replace("ada", "\xe4da").encode("latin-1"), "is not UTF-8 text"),
    "smart quotes": (".kaggle/kaggle.json", GOOD.replace('"', "\u201d").encode(), "typographic quotes"),
    "single quotes": (".kaggle/kaggle.json", GOOD.replace('"', "'").encode(), "single quotes; JSON needs double"),
    "empty": (".kaggle/kaggle.json", b"", "kaggle.json is empty"),
    "a folder": (".kaggle/kaggle.json", None, "kaggle.json is a folder; a file of that name is needed"),
    "cut off": (".kaggle/kaggle.json", GOOD[:-3].encode(), "is not complete JSON; download the file again"),
    "a page": (".kaggle/kaggle.json", b"<html>Sign in</html>", "is a web page"),
    "a list": (".kaggle/kaggle.json", f'["{USER}"]'.encode(), "holds a list"),
    "no key": (".kaggle/kaggle.json", dump_json(username=USER), "kaggle.json has no key"),
    "no username": (".kaggle/kaggle.json", dump_json(key=KEY), "kaggle.json has no username"),
    "neither": (".kaggle/kaggle.json", b"{}", "kaggle.json has no username and no key"),
    "null": (".kaggle/kaggle.json", dump_json(username=USER, key=None), "kaggle.json has no key"),
    "capitals": (".kaggle/kaggle.json", dump_json(Username=USER, key=KEY), "no username (names are in small letters"),
    "swapped": (".kaggle/kaggle.json", dump_json(username=KEY, key=USER), "username and key are swapped"),
    "a line break": (".kaggle/kaggle.json", dump_json(username=USER, key=f"{KEY}\n"), "spaces or line breaks"),
    "an address": (".kaggle/kaggle.json", dump_json(username="ada@example.org", key=KEY), "is an e-mail address"),
    "a token": (".kaggle/kaggle.json", TOKEN.encode(), "holds an API token, which belongs in ~/.kaggle/access_token"),
    "as .txt": (".kaggle/kaggle.json.txt", GOOD.encode(), "kaggle.json.txt is not read; it belongs at"),
    "second download": (".kaggle/kaggle (1).json", GOOD.encode(), "kaggle (1).json is not read; it belongs at"),
    "in the downloads": ("Downloads/kaggle.json", GOOD.encode(), "Downloads/kaggle.json is not read; it belongs at"),
    "at home": ("kaggle.json", GOOD.encode(), "kaggle.json is not read; it belongs at"),
    "UTF-32": (".kaggle/kaggle.json", GOOD.encode("utf-32"), "is text in UTF-32"),
    "zero bytes": (".kaggle/kaggle.json", b"\0" * 64, "has only zero bytes"),
    "rich text": (".kaggle/kaggle.json", b"{\\rtf1\\ansi " + GOOD.encode(), "Rich Text Format"),
    "an archive": (".kaggle/kaggle.json", b"PK\x03\x04\xff", "is an archive or a document"),
    "trailing comma": (".kaggle/kaggle.json", f"{GOOD[:-1]},\n}}".encode(), "has a comma before the closing brace"),
    "assignments": (".kaggle/kaggle.json", f"KAGGLE_USERNAME={USER}\nKAGGLE_KEY={KEY}".encode(), "lines of names"),
    "YAML": (".kaggle/kaggle.json", f"username: {USER}\nkey: {KEY}".encode(), "lines of names and values; {"),
    "the key alone": (".kaggle/kaggle.json", KEY.encode(), "holds only the key"),
    "a wrapped key": (
        ".kaggle/kaggle.json",
        GOOD.replace("cdef01", "cdef\n01").encode(),
        "a line break inside a value",
    ),
    "a space in the name": (".kaggle/kaggle.json", dump_json(username="Ada L", key=KEY), "spaces or line breaks in"),
    "a profile": (".kaggle/kaggle.json", dump_json(username=f"kaggle.com/{USER}", key=KEY), "address of a profile"),
    "a token as key": (".kaggle/kaggle.json", dump_json(username=USER, key=TOKEN), "the key is an API token"),
    "a token in JSON": (".kaggle/kaggle.json", dump_json(token=TOKEN), "holds an API token"),
    "a masked key": (".kaggle/kaggle.json", dump_json(username=USER, key="********"), "create a new token"),
    "names of variables": (".kaggle/kaggle.json", dump_json(KAGGLE_USERNAME=USER, key=KEY), "no username (names are"),
    "unfinished": (".kaggle/kaggle.json.crdownload", GOOD.encode(), "is an unfinished download"),
    "a copy": (".kaggle/kaggle - Copy (2).json", GOOD.encode(), "Copy (2).json is not read"),
    "on the desktop": ("Desktop/kaggle 2.json", GOOD.encode(), "kaggle 2.json is not read"),
    "unpacked": ("Downloads/kaggle.json/kaggle.json", GOOD.encode(), "kaggle.json/kaggle.json is not read"),
    "access token elsewhere": ("Downloads/access_token (1).txt", TOKEN.encode(), "it belongs at"),
    "access token is a key": (".kaggle/access_token", KEY.encode(), "holds a key, which belongs in kaggle.json"),
    "access token with JSON": (".kaggle/access_token", GOOD.encode(), "access_token holds JSON"),
    "access token with BOM": (".kaggle/access_token", TOKEN.encode("utf-8-sig"), "byte-order mark"),
    "access token in UTF-16": (".kaggle/access_token", TOKEN.encode("utf-16"), "access_token is text in UTF-16"),
    "access token in quotes": (".kaggle/access_token", f'"{TOKEN}"'.encode(), "access_token has quotes"),
    "access token as a command": (".kaggle/access_token", f"export A={TOKEN}".encode(), "more than the token"),
    "access token empty": (".kaggle/access_token", b"\n", "access_token is empty"),
    "access token a folder": (".kaggle/access_token", None, "access_token is a folder"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_the_fault_of_a_token_file_is_named_and_its_content_is_not_shown(home: Path, name: str) -> None:
    place, content, words = FAULTY[name]
    path = home / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    found = _explain_token_files()
    assert words in found and "\n" not in found
    for secret in (KEY, USER, TOKEN, "example.org", KEY[:8]):
        assert secret not in found.replace(str(home), "")


def test_good_tokens_and_none_at_all_have_no_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _explain_token_files() == ""
    (home / ".kaggle/kaggle.json").write_text(GOOD)
    assert _explain_token_files() == ""
    (home / ".kaggle/access_token").write_text(TOKEN + "\n")
    assert _explain_token_files() == ""
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    (home / ".kaggle/access_token").unlink()
    (home / ".kaggle/kaggle.json").unlink()
    assert _explain_token_files() == "KAGGLE_USERNAME is set, and KAGGLE_KEY is not"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("KAGGLE_API_TOKEN", f'"{TOKEN}"', "KAGGLE_API_TOKEN has quotes"),
        ("KAGGLE_API_TOKEN", f"Bearer {TOKEN}", "KAGGLE_API_TOKEN has more than the token"),
        ("KAGGLE_API_TOKEN", "missing/access_token", "is the path of a file that does not exist"),
        ("KAGGLE_API_TOKEN", "empty", "empty is empty"),
        ("KAGGLE_CONFIG_DIR", "empty", "KAGGLE_CONFIG_DIR is the file empty; give the folder"),
    ],
)
def test_the_fault_of_a_variable_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    (home / "empty").touch()
    monkeypatch.setenv(variable, value)
    found = _explain_token_files()
    assert words in found and TOKEN not in found


@pytest.mark.usefixtures("quick")
def test_the_clients_login_names_the_fault(kaggle: FakeKaggle, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    (home / ".kaggle/kaggle.json").write_bytes(GOOD.encode("utf-16"))
    finding = account.check_account()[0]
    assert finding.state == BAD and "kaggle.json is text in UTF-16; save it as UTF-8" in finding.found
    assert KEY not in str(finding) and USER not in str(finding)
