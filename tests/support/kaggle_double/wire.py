"""Check requests against the client's own types: routes, names and types of fields come from kagglesdk."""

from __future__ import annotations

import re
import typing
from typing import Any

from kagglesdk.competitions.services.competition_api_service import CompetitionApiClient
from kagglesdk.datasets.services.dataset_api_service import DatasetApiClient
from kagglesdk.kaggle_object import KaggleObject, ListSerializer, PredefinedSerializer
from kagglesdk.kernels.services.kernels_api_service import KernelsApiClient
from kagglesdk.security.services.oauth_service import OAuthClient

SERVICES: dict[str, type] = {
    "kernels.KernelsApiService": KernelsApiClient,
    "competitions.CompetitionApiService": CompetitionApiClient,
    "datasets.DatasetApiService": DatasetApiClient,
    "security.OAuthService": OAuthClient,
}
# The fields without which a request means nothing (CLIENT: each is always set by the client's calls).
REQUIRED = {
    "SaveKernel": ("slug", "newTitle", "text", "language", "kernelType"),
    "GetKernel": ("userName", "kernelSlug"),
    "GetKernelSessionStatus": ("userName", "kernelSlug"),
    "ListKernelSessionOutput": ("userName", "kernelSlug"),
    "DeleteKernel": ("userName", "kernelSlug"),
    "StartSubmissionUpload": ("competitionName", "fileName", "contentLength", "lastModifiedEpochSeconds"),
    "CreateSubmission": ("competitionName", "blobFileTokens"),
    "ListSubmissions": ("competitionName",),
    "GetSubmissionLimits": ("competitionName",),
    "GetCompetition": ("competitionName",),
    "DownloadDataFile": ("competitionName", "fileName"),
    "DownloadDataFiles": ("competitionName",),
    "ListDatasetFiles": ("ownerSlug", "datasetSlug"),
    "DownloadDataset": ("ownerSlug", "datasetSlug", "fileName"),
    "IntrospectToken": ("token",),
}


class Refused(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def check_request(route: str, body: Any) -> str:
    """Return the method of a request that the client's types allow.

    Raises:
        Refused: no such route, an unknown field, a field of another kind, or a missing one.
    """
    service, _, method = route.partition("/")
    call = getattr(SERVICES.get(service), re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower(), None)
    if call is None:
        raise Refused(404, f"Not found: {route}")
    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")
    request = typing.get_type_hints(call)["request"]
    fields = {field.json_name: field for field in request._fields}
    for name, value in body.items():
        if name not in fields:
            raise Refused(400, f"Unknown name {name!r} of {method}: cannot find field")
        if not is_of_kind(fields[name], value):
            raise Refused(400, f"Invalid value of {name!r}: {value!r}")
    missing = [name for name in REQUIRED.get(method, ()) if body.get(name) in (None, "")]
    if missing:
        raise Refused(400, f"Missing {', '.join(missing)}")
    return method


def is_of_kind(field: Any, value: Any) -> bool:
    """Return True if a field's JSON value is of the field's type, as the client writes it."""
    if isinstance(field.serializer, ListSerializer):
        return isinstance(value, list) and all(isinstance(one, field.field_type) for one in value)
    if isinstance(field.serializer, PredefinedSerializer):
        return type(value) is field.field_type
    if isinstance(field.field_type, type) and issubclass(field.field_type, KaggleObject):
        return isinstance(value, dict)
    return isinstance(value, str)


def check_answer(method: str, answer: dict[str, Any]) -> None:
    """Hold the double's own answers to the client's types: a name that the client does not read is a mistake here.

    Raises:
        AssertionError: naming it.
    """
    for service in SERVICES.values():
        call = getattr(service, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower(), None)
        if call is not None:
            known = {field.json_name for field in getattr(typing.get_type_hints(call)["return"], "_fields", [])}
            assert not known or answer.keys() <= known, f"{method} does not answer {sorted(answer.keys() - known)}"
