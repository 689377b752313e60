"""Test the shell completion in a real bash."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_script_is_installed_into_a_folder_that_is_made(shell: str, call: Call, home: Path) -> None:
    code, shown, _ = call("completion", shell, "--install")
    place = Path(shown.strip())
    assert code == 0 and place.is_relative_to(home)
    assert place.read_text("utf-8").rstrip() == call("completion", shell)[1].rstrip()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_verbs_flags_choices_and_paths(call: Call, tmp_path: Path) -> None:
    code, script, _ = call("completion", "bash")
    assert code == 0
    (tmp_path / "claris.bash").write_text(script)
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches.csv").touch()
    for typed, wanted in (
        (["tra"], {"train"}),
        (["train", "--ep"], {"--epochs"}),
        (["train", "--geometry", ""], {"d4", "flips"}),
        (["submission", ""], {"check", "compare"}),
        (["train", "--data", "patch"], {"patches"}),
        (["folds", "--check", "patch"], {"patches", "patches.csv"}),
    ):
        words = " ".join(f"'{word}'" for word in ["claris", *typed])
        program = (
            f"source ./claris.bash; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; "
            "$(complete -p claris | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert set(done.stdout.split()) == wanted, (typed, done.stderr)


def test_zsh_gets_a_script_too(call: Call) -> None:
    code, script, _ = call("completion", "zsh")
    assert code == 0 and script.startswith("#compdef claris")
