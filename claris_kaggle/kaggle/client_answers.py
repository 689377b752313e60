"""Define the answers of Kaggle's client. They cross from the client process to `api` as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class _Login:
    """The account of the token; the method is one of the client's own names."""

    user: str
    method: str


@dataclass(frozen=True, kw_only=True)
class _PushAnswer:
    """The answer to a push.

    Attributes:
        version: number of the new version; 0 if the answer has none.
        error: reason of a refusal; empty if the push was accepted.
        refused: inputs that Kaggle does not attach, by kind.
        ref, url: the name under which Kaggle put the kernel, in any of its forms; may be empty.
    """

    version: int
    error: str = ""
    refused: Mapping[str, list[str]] = field(default_factory=dict)
    ref: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class _KernelSource:
    """Number, source and inputs of a kernel's newest version; the inputs by their names in the metadata."""

    version: int
    source: str
    sources: Mapping[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class _SessionState:
    """The state of a session as Kaggle names it, in capitals, and the reason of a failure."""

    status: str
    message: str


@dataclass(frozen=True, kw_only=True)
class _SubmitAnswer:
    """The answer to a submission.

    Attributes:
        ref: number of the submission; 0 if the answer has none.
        message: Kaggle's message; the client's own message if the upload failed.
        uploaded: True unless the upload failed.
    """

    ref: int
    message: str
    uploaded: bool


@dataclass(frozen=True, kw_only=True)
class _ListedSubmission:
    """A submission that Kaggle lists. An unknown score is an empty string."""

    ref: int
    description: str
    status: str
    error: str
    public: str
    private: str


@dataclass(frozen=True, kw_only=True)
class _SubmissionLimits:
    """The numbers of submissions left today and made today."""

    allowed: int
    today: int


@dataclass(frozen=True, kw_only=True)
class _QuotaAnswer:
    """The GPU seconds of a week.

    Attributes:
        known: True if Kaggle gave them.
        used, reserved, allowed: seconds.
        renews: start of the next week (ISO 8601, UTC); empty if Kaggle does not give it.
    """

    known: bool
    used: float
    reserved: float
    allowed: float
    renews: str


@dataclass(frozen=True, kw_only=True)
class _CompetitionState:
    """The account's state in the competition; `found` is False if Kaggle does not list the competition."""

    found: bool
    entered: bool = False
    closed: bool = False
    only_kernels: bool = False
    daily: int = 0


@dataclass(frozen=True, kw_only=True)
class _CallFailure:
    """A failed call.

    Attributes:
        kind: login, http, storage (a download host answered, not Kaggle), network, disk or client.
        text: the reason.
        status: HTTP status of the response; 0 without one.
        retry_after: the header Retry-After; may be empty.
        errno: of a disk error.
    """

    kind: str
    text: str
    status: int = 0
    retry_after: str = ""
    errno: int = 0
