"""Say what is wrong with the files of a Kaggle token, without showing any of their content.

Kaggle's client ignores a token file that it cannot read, without a reason.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

_NAME = "kaggle.json"
_SMART_QUOTES = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_LEGACY_KEY = re.compile(r"[0-9a-f]{32}")
_API_TOKEN = "KGAT_"
# Names that browsers, editors and file managers give to the file.
_OTHER_NAMES = re.compile(
    r"kaggle( ?\(\d+\)| ?- ?copy| copy( \d+)?|_\d+)?\.json(\.(txt|json|download))?", re.IGNORECASE
)


def _explain_token_files() -> str:
    """Return the first fault of the token files and variables of this user, without any value; empty if none is known.

    The client's order is kept: the variables, the access token, then kaggle.json.
    """
    pair = ("KAGGLE_USERNAME", "KAGGLE_KEY")
    given = [name for name in pair if os.environ.get(name)]
    if len(given) == 2:
        return _find_pair_fault("the variables KAGGLE_USERNAME and KAGGLE_KEY", *(os.environ[name] for name in pair))
    if os.environ.get("KAGGLE_API_TOKEN"):
        return ""
    for name in ("access_token", "access_token.txt"):
        path = Path("~/.kaggle").expanduser() / name
        if os.path.lexists(path):
            return _find_access_token_fault(path)
    folder = _config_folder()
    path = folder / _NAME
    if os.path.lexists(path):
        fault = _find_json_fault(path)
        return fault or (f"{given[0]} is set without the other of {' and '.join(pair)}" if given else "")
    if given:
        return f"{given[0]} is set, and {next(name for name in pair if name not in given)} is not"
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
        usual = [folder, *(Path("~").expanduser() / name for name in (".kaggle", ".", "Downloads"))]
    except RuntimeError:  # no home folder
        usual = [folder]
    for place in [*usual, Path()]:
        try:
            names = sorted(os.listdir(place))  # noqa: PTH208 - names only
        except OSError:
            continue
        other = next((name for name in names if _OTHER_NAMES.fullmatch(name)), "")
        if other and not (place == folder and other == _NAME):
            return f"{(place / other)} is not read; it belongs at {folder / _NAME}"
    return ""


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
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:16]:
        return "", f"{path} is text in UTF-16; save it as UTF-8 without BOM"
    if content.startswith(b"\xef\xbb\xbf"):
        return "", f"{path} begins with a byte-order mark; save it as UTF-8 without BOM"
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        return "", f"{path} is not UTF-8 text; save it as UTF-8 without BOM"


def _find_json_fault(path: Path) -> str:
    """Return what is wrong with a kaggle.json; empty if nothing is known to be."""
    text, fault = _read_text(path)
    if fault:
        return fault
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        if any(sign in text for sign in _SMART_QUOTES):
            return f"{path} has typographic quotes; replace them by straight ones"
        if text.lstrip()[:1] == "<":
            return f"{path} is a web page; download the file again"
        if text.strip().startswith(_API_TOKEN):
            return f"{path} holds an API token, which belongs into ~/.kaggle/access_token"
        if "'" in text and '"' not in text:
            return f"{path} has single quotes; JSON needs double quotes"
        return f"{path} is not complete JSON; download the file again"
    if not isinstance(content, dict):
        return f"{path} holds a {type(content).__name__}; an object with username and key is needed"
    missing = [name for name in ("username", "key") if not content.get(name)]
    if missing:
        others = [name for name in content if name.strip().lower() in missing and name not in missing]
        near = " (names are in small letters, without spaces)" if others else ""
        return f"{path} has no {' and no '.join(missing)}{near}"
    return _find_pair_fault(str(path), content["username"], content["key"])


def _find_pair_fault(source: str, user: object, key: object) -> str:
    """Return what is wrong with a user name and key; empty if nothing is known to be."""
    if not isinstance(user, str) or not isinstance(key, str):
        return f"{source}: username and key must be text"
    if user != user.strip() or key != key.strip():
        return f"{source}: spaces or line breaks around username or key"
    if _LEGACY_KEY.fullmatch(user) and not _LEGACY_KEY.fullmatch(key):
        return f"{source}: username and key are swapped"
    if "@" in user:
        return f"{source}: username is an e-mail address; the user name of the account is needed"
    if not user.isascii() or not key.isascii() or set("<>\"'") & set(user + key):
        return f"{source}: username or key has characters that no token has"
    return ""


def _find_access_token_fault(path: Path) -> str:
    """Return what is wrong with a file of an access token; empty if nothing is known to be."""
    text, fault = _read_text(path)
    if fault:
        return fault
    token = text.strip()
    if token[:1] == "{":
        return f"{path} holds JSON; JSON belongs into kaggle.json, and the token alone into access_token"
    if token[:1] == "<":
        return f"{path} is a web page; create the token again"
    if len(token.split()) > 1 or "=" in token.rstrip("="):
        return f"{path} has more than the token; the token alone is needed"
    if not token.isascii() or set("\"'") & set(token):
        return f"{path} has quotes or other characters that no token has"
    return ""
