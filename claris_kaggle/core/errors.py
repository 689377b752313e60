"""The error tree: what went wrong, what was needed, what to do.

    ClarisError             exit 1
    ├── UsageError          exit 2   the command was typed wrongly
    ├── DataError           exit 1   an input file does not hold what it should
    │   ├── TableError               a CSV
    │   └── PatchError               an image
    │       └── OversizeError        one above the limits
    ├── RunError            exit 1   a run folder does not fit what was asked of it
    ├── DiskError           exit 1   a file cannot be written or read
    ├── TrainingError       exit 1   the computation itself failed
    │   └── CudnnError               in a cuDNN call
    ├── KaggleError         exit 1   Kaggle refused, or could not be reached
    └── Stopped             exit 3   stopped on time or on request; work is left to resume

Imports nothing of ours, so that every module may raise these.
"""

from __future__ import annotations

from collections.abc import Iterable

_MAX_NAMED = 3
# The variable with the file in which a verb leaves why it failed, for the process that started it.
ERROR_FILE_VARIABLE = "CLARIS_LAST_WORDS"


class ClarisError(Exception):
    """A failure that the user can mend: one line of found, expected and hint.

    Args:
        found: what is there, with the file's name first.
        expected: what should have been there; may be empty.
        hint: what to do, best a command; may be empty.
    """

    exit_code = 1

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        self.found, self.expected, self.hint = map(escape_unprintable, (found, expected, hint))
        text = "; ".join(part for part in (self.found, self.expected) if part)
        super().__init__(f"{text}. {self.hint}" if hint else text)

    def __reduce__(self) -> tuple[type[ClarisError], tuple[str, str, str]]:
        """Rebuild from the three parts: joblib workers send errors as pickles."""
        return type(self), (self.found, self.expected, self.hint)


class UsageError(ClarisError):
    """A flag or argument that cannot be right."""

    exit_code = 2


class DataError(ClarisError):
    """An input file that does not hold what it should."""


class TableError(DataError):
    """A CSV with wrong columns, ids or values."""


class PatchError(DataError):
    """An image that is damaged, of another size or kind, or not the one its name says."""


class OversizeError(PatchError):
    """An image of more bytes or pixels than are taken."""


class RunError(ClarisError):
    """A run folder that does not fit what was asked of it."""


class DiskError(ClarisError):
    """A file that cannot be read or written."""


class TrainingError(ClarisError):
    """A computation that failed: NaN loss, out of memory, a process that died."""


class CudnnError(TrainingError):
    """A cuDNN call that failed on a GPU; the same work may succeed with other settings."""


class KaggleError(ClarisError):
    """Kaggle refused, or could not be reached.

    Attributes:
        status: the HTTP status, 0 when there was none.
        passing: a later try may do better.
        after: seconds that the server asked to wait.
        busy: refused only because other sessions are running.
        refused: an answer to a push came, and it is no kernel as it was asked for.
        no_version: the refused push made no version of the kernel.
    """

    def __init__(
        self,
        found: str,
        expected: str = "",
        hint: str = "",
        *,
        status: int = 0,
        passing: bool = False,
        after: float = 0.0,
        busy: bool = False,
        refused: bool = False,
        no_version: bool = False,
    ) -> None:
        super().__init__(found, expected, hint)
        self.status, self.passing, self.after = status, passing, after
        self.busy, self.refused, self.no_version = busy, refused, no_version


class Stopped(ClarisError):
    """Stopped by the time limit or a signal, with everything on disk to go on."""

    exit_code = 3


def escape_unprintable(name: object) -> str:
    """A name that every page and terminal in UTF-8 takes: bytes of a file's name that are no text are spelt out.

    >>> escape_unprintable("caf\\udce9.png")
    'caf\\\\udce9.png'
    """
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def name_few(names: Iterable[object]) -> str:
    """The first three names and a count of the rest, for use in a message.

    >>> name_few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    listed = [str(name) for name in names]
    head = ", ".join(listed[:_MAX_NAMED])
    return head if len(listed) <= _MAX_NAMED else f"{head} and {len(listed) - _MAX_NAMED:,} more"


def format_count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun in the right form.

    >>> format_count(1, "patch", "patches"), format_count(1200, "id")
    ('1 patch', '1,200 ids')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def first_line(error: BaseException) -> str:
    """The first line of what another library says, or the name of its error.

    >>> first_line(ValueError("bad header\\nat byte 3")), first_line(EOFError())
    ('bad header', 'EOFError')
    """
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
