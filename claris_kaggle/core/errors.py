"""The exception tree. A message has three parts: what was found, what was expected, what to do.

    ClarisError             exit 1
    ├── UsageError          exit 2   a wrong flag or argument
    ├── DataError           exit 1   an input file has wrong content
    │   ├── TableError               a CSV
    │   └── PatchError               an image
    │       └── OversizeError        an image above the size limits
    ├── RunError            exit 1   a run folder does not match the request
    ├── DiskError           exit 1   a file cannot be written or read
    ├── TrainingError       exit 1   the computation failed
    │   └── CudnnError               in a cuDNN call
    ├── KaggleError         exit 1   Kaggle refused, or could not be reached
    └── Stopped             exit 3   time limit or signal; run again to resume

This module imports no other module of the package, so that every module can raise these errors.
"""

from __future__ import annotations

from collections.abc import Iterable

_MAX_NAMED = 3
# Environment variable: the file to which a command writes its error, for the process that started it.
ERROR_FILE_VARIABLE = "CLARIS_ERROR_FILE"


class ClarisError(Exception):
    """A failure that the user can fix. Its message is one line: found, expected and hint.

    Args:
        found: what was found, starting with the file name.
        expected: what was expected; may be empty.
        hint: what to do, if possible a command; may be empty.
    """

    exit_code = 1

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        self.found, self.expected, self.hint = map(escape_unprintable, (found, expected, hint))
        text = "; ".join(part for part in (self.found, self.expected) if part)
        super().__init__(f"{text}. {self.hint}" if hint else text)

    def __reduce__(self) -> tuple[type[ClarisError], tuple[str, str, str]]:
        """Rebuild the error from its three parts: joblib workers pickle errors."""
        return type(self), (self.found, self.expected, self.hint)


class UsageError(ClarisError):
    """A wrong flag or argument."""

    exit_code = 2


class DataError(ClarisError):
    """An input file with wrong content."""


class TableError(DataError):
    """A CSV with wrong columns, ids or values."""


class PatchError(DataError):
    """An image that is damaged, has another size or mode, or does not match its id."""


class OversizeError(PatchError):
    """An image with more bytes or pixels than allowed."""


class RunError(ClarisError):
    """A run folder that does not match the request."""


class DiskError(ClarisError):
    """A file that cannot be read or written."""


class TrainingError(ClarisError):
    """A computation that failed: NaN loss, out of memory, or a process that died."""


class CudnnError(TrainingError):
    """A cuDNN call that failed on a GPU; the same work may succeed with other settings."""


class KaggleError(ClarisError):
    """A request that Kaggle refused, or a failure to reach Kaggle.

    Attributes:
        status: the HTTP status; 0 without a response.
        retryable: True if a later attempt may succeed.
        retry_after: seconds that the server asked to wait.
        session_limit: True if Kaggle refused only because other sessions are running.
        refused: True if Kaggle answered a push and did not create the requested kernel.
        no_version: True if the refused push created no version of the kernel.
    """

    def __init__(
        self,
        found: str,
        expected: str = "",
        hint: str = "",
        *,
        status: int = 0,
        retryable: bool = False,
        retry_after: float = 0.0,
        session_limit: bool = False,
        refused: bool = False,
        no_version: bool = False,
    ) -> None:
        super().__init__(found, expected, hint)
        self.status, self.retryable, self.retry_after = status, retryable, retry_after
        self.session_limit, self.refused, self.no_version = session_limit, refused, no_version


class Stopped(ClarisError):
    """A stop by the time limit or a signal. The state on disk is complete, and the run can resume."""

    exit_code = 3


def escape_unprintable(name: object) -> str:
    """Return a name as valid UTF-8 text; bytes of a file name that are not UTF-8 become escapes.

    >>> escape_unprintable("caf\\udce9.png")
    'caf\\\\udce9.png'
    """
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def name_few(names: Iterable[object]) -> str:
    """Return the first three names and a count of the rest, for a message.

    >>> name_few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    listed = [str(name) for name in names]
    head = ", ".join(listed[:_MAX_NAMED])
    return head if len(listed) <= _MAX_NAMED else f"{head} and {len(listed) - _MAX_NAMED:,} more"


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun in singular or plural.

    >>> format_count(1, "patch", "patches"), format_count(1200, "id")
    ('1 patch', '1,200 ids')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_bytes(size: float) -> str:
    """Return a size on disk as text.

    >>> format_bytes(7.7e9), format_bytes(23_000_000), format_bytes(800_000)
    ('7.7 GB', '23 MB', '0.8 MB')
    """
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, or the name of its class.

    >>> first_line(ValueError("bad header\\nat byte 3")), first_line(EOFError())
    ('bad header', 'EOFError')
    """
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
