"""Say what is wrong with the files of a Kaggle token, without showing any of their content.

Kaggle's client ignores a token file that it cannot read, without a reason.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

_KEY_FILE = "kaggle.json"
_SMART_QUOTES = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_API_TOKEN_HINT = "holds an API token, which belongs in ~/.kaggle/access_token"
_LEGACY_KEY = re.compile(r"[0-9a-f]{32}")
_API_TOKEN = "KGAT_"
# Patterns of the names that browsers, editors and file managers give to copies of the file.
_COPY_SUFFIX = r"([ _-]*(\(\d+\)|copy|\d+))*"
_EXTRA_SUFFIX = r"(\.(txt|json|bak|old|download|crdownload|part|partial))*~?"
_OTHER_NAMES = {
    _KEY_FILE: re.compile(rf"\.?kaggle{_COPY_SUFFIX}([. ]json|(?=\.txt)){_EXTRA_SUFFIX}", re.IGNORECASE),
    "access_token": re.compile(rf"\.?access[ _-]?token{_COPY_SUFFIX}{_EXTRA_SUFFIX}", re.IGNORECASE),
}
_DOWNLOADING = (".download", ".crdownload", ".part", ".partial")
_SEARCHED_FOLDERS = (".kaggle", ".", "Downloads", "Desktop", "Documents", "kaggle", ".config/kaggle")
# First bytes of files that are not plain text, and what to do.
_DOCUMENT_KINDS = {
    b"PK\x03\x04": "is an archive or a document; save the token as plain text",
    b"%PDF": "is a PDF document; save the token as plain text",
    b"{\\rtf": "is a document in Rich Text Format; save it as plain text",
}
_EXAMPLE = '{"username": "...", "key": "..."}'


def _explain_token_files() -> str:
    """Return the first fault of this user's token files and variables, without any value; empty if none is found.

    They are checked in the client's order: the variables, the access token, then kaggle.json.
    """
    pair = ("KAGGLE_USERNAME", "KAGGLE_KEY")
    set_variables = [name for name in pair if os.environ.get(name)]
    if len(set_variables) == 2:
        return _find_pair_fault("the variables KAGGLE_USERNAME and KAGGLE_KEY", *(os.environ[name] for name in pair))
    if os.environ.get("KAGGLE_API_TOKEN"):
        return _find_variable_fault(os.environ["KAGGLE_API_TOKEN"])
    for name in ("access_token", "access_token.txt"):
        path = Path("~/.kaggle").expanduser() / name
        if os.path.lexists(path):
            return _find_access_token_fault(path)
    folder = _config_folder()
    if folder.is_file():
        return f"KAGGLE_CONFIG_DIR is the file {folder}; give the folder of {_KEY_FILE}"
    path = folder / _KEY_FILE
    if os.path.lexists(path):
        fault = _find_json_fault(path)
        return fault or (
            f"{set_variables[0]} is set without the other of {' and '.join(pair)}" if set_variables else ""
        )
    if set_variables:
        return f"{set_variables[0]} is set, and {next(name for name in pair if name not in set_variables)} is not"
    return _find_misplaced(folder)


def _config_folder() -> Path:
    """Return the folder in which the client looks for kaggle.json."""
    chosen = os.environ.get("KAGGLE_CONFIG_DIR")
    folder = Path(chosen) if chosen else Path("~/.kaggle").expanduser()
    if chosen or folder.exists() or not sys.platform.startswith("linux"):
        return folder
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "kaggle"


def _find_misplaced(folder: Path) -> str:
    """Return the fault of a token file under another name, or in a folder where the client does not look."""
    try:
        home = Path("~").expanduser()
    except RuntimeError:  # no home folder
        return ""
    expected = {_KEY_FILE: folder / _KEY_FILE, "access_token": home / ".kaggle" / "access_token"}
    for folder_to_search in dict.fromkeys([folder, *(home / name for name in _SEARCHED_FOLDERS), Path()]):
        try:
            names = sorted(os.listdir(folder_to_search))  # noqa: PTH208 - names only
        except OSError:
            continue
        for kind, pattern in _OTHER_NAMES.items():
            for name in filter(pattern.fullmatch, names):
                found = (
                    folder_to_search / name / kind if (folder_to_search / name).is_dir() else folder_to_search / name
                )
                if found.is_file() and found != expected[kind]:
                    return _explain_misplaced(found, expected[kind])
    return ""


def _explain_misplaced(found: Path, expected: Path) -> str:
    """Return what to do about a token file in the wrong place."""
    if found.name.lower().endswith(_DOWNLOADING) and not found.name.lower().endswith(".json.download"):
        return f"{found} is an unfinished download; download it again, to {expected}"
    return f"{found} is not read; it belongs at {expected}"


def _read_text(path: Path) -> tuple[str, str]:
    """Return the text of a token file, and what is wrong with its kind or encoding."""
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        return "", f"{path} is a folder; a file of that name is needed"
    except OSError as error:
        return "", f"{path} cannot be read ({error.strerror or type(error).__name__})"
    if not content.strip():
        return "", f"{path} is empty"
    if not content.strip(b"\0"):
        return "", f"{path} has only zero bytes; download the file again"
    kind = next((what for start, what in _DOCUMENT_KINDS.items() if content.startswith(start)), "")
    if kind:
        return "", f"{path} {kind}"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:16]:
        width = 32 if b"\0\0" in content[:16] else 16
        return "", f"{path} is text in UTF-{width}; save it as UTF-8 without BOM"
    if content.startswith(b"\xef\xbb\xbf"):
        return "", f"{path} begins with a byte-order mark; save it as UTF-8 without BOM"
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        return "", f"{path} is not UTF-8 text; save it as UTF-8 without BOM"


def _find_json_fault(path: Path) -> str:
    """Return what is wrong with a kaggle.json; empty if no fault is found."""
    text, fault = _read_text(path)
    if fault:
        return fault
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return f"{path} {_explain_syntax(text)}"
    if not isinstance(content, dict):
        kind = {list: "list", str: "text", type(None): "null"}.get(type(content), "number")
        return f"{path} holds a {kind}; an object with username and key is needed"
    missing = [name for name in ("username", "key") if not content.get(name)]
    if missing and any(str(value).startswith(_API_TOKEN) for value in content.values()):
        return f"{path} {_API_TOKEN_HINT}"
    if missing:
        misspelled = [name for name in content if name.strip().lower().removeprefix("kaggle_") in missing]
        remark = (
            " (names are in small letters, without spaces)" if any(name not in missing for name in misspelled) else ""
        )
        return f"{path} has no {' and no '.join(missing)}{remark}"
    return _find_pair_fault(str(path), content["username"], content["key"])


def _explain_syntax(text: str) -> str:
    """Return what is wrong with text that is not JSON."""
    if any(sign in text for sign in _SMART_QUOTES):
        return "has typographic quotes; replace them with straight quotes"
    if text.lstrip()[:1] == "<":
        return "is a web page; download the file again"
    if text.strip().startswith(_API_TOKEN):
        return _API_TOKEN_HINT
    if _LEGACY_KEY.fullmatch(text.strip()):
        return f"holds only the key; {_EXAMPLE} is needed"
    if "'" in text and '"' not in text:
        return "has single quotes; JSON needs double quotes"
    if re.search(r"^\s*(export |set )?\w+\s*[=:]", text):
        return f"has lines of names and values; {_EXAMPLE} is needed"
    if re.search(r",\s*}", text):
        return "has a comma before the closing brace; remove it"
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return "is not complete JSON; download the file again"
    return "has a line break inside a value; download the file again"


def _find_pair_fault(source: str, user: object, key: object) -> str:
    """Return what is wrong with a user name and key; empty if no fault is found."""
    if not isinstance(user, str) or not isinstance(key, str):
        return f"{source}: username and key must be text"
    if len(user.split()) != 1 or len(key.split()) != 1 or user != user.strip() or key != key.strip():
        return f"{source}: spaces or line breaks in username or key"
    if key.startswith(_API_TOKEN):
        return f"{source}: the key is an API token, which belongs in ~/.kaggle/access_token"
    if _LEGACY_KEY.fullmatch(user) and not _LEGACY_KEY.fullmatch(key):
        return f"{source}: username and key are swapped"
    if user.startswith("@") or "/" in user:
        return f"{source}: username is the address of a profile; only the user name is needed"
    if "@" in user:
        return f"{source}: username is an e-mail address; the user name of the account is needed"
    if not user.isascii() or not key.isascii() or set("<>\"'") & set(user + key):
        return f"{source}: username or key has characters that no token has"
    if not _LEGACY_KEY.fullmatch(key):
        return f"{source}: the key is not a Kaggle key, which has 32 digits from 0-9 and a-f; create a new token"
    return ""


def _find_variable_fault(value: str) -> str:
    """Return what is wrong with KAGGLE_API_TOKEN, a token or the path of a file with one."""
    path = Path(value)
    try:
        if os.path.lexists(path):
            return _find_access_token_fault(path)
    except (OSError, ValueError):  # not a path
        pass
    if len(path.parts) > 1:
        return "KAGGLE_API_TOKEN is the path of a file that does not exist"
    return _find_token_fault("KAGGLE_API_TOKEN", value)


def _find_access_token_fault(path: Path) -> str:
    """Return what is wrong with a file of an access token; empty if no fault is found."""
    text, fault = _read_text(path)
    return fault or _find_token_fault(str(path), text)


def _find_token_fault(source: str, text: str) -> str:
    """Return what is wrong with the text of an access token; empty if no fault is found."""
    token = text.strip()
    if token[:1] == "{":
        return f"{source} holds JSON, which belongs in kaggle.json; access_token needs only the token"
    if token[:1] == "<":
        return f"{source} is a web page; create the token again"
    if len(token.split()) > 1 or "=" in token.rstrip("="):
        return f"{source} has more than the token; only the token is needed"
    if not token.isascii() or set("\"'") & set(token):
        return f"{source} has quotes or other characters that no token has"
    if _LEGACY_KEY.fullmatch(token):
        return f"{source} holds a key, which belongs in kaggle.json with its username; an API token is needed"
    return ""
