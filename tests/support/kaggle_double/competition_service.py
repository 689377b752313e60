"""The competition on the simulated server: its files, its rules, submissions and their scores."""

from __future__ import annotations

from typing import Any

from tests.support.kaggle_double.kernel_service import Answer, Files
from tests.support.kaggle_double.wire import Refused

COMPETITION = "histopathologic-cancer-detection"
A_DAY = 5
# USERS: the answer to whoever has not accepted the rules.
RULES = "You must accept this competition's rules before you'll be able to download files or submit."


class CompetitionService:
    """The competition on Kaggle, and the responses of its competition service."""

    url = ""
    rules_accepted = True
    submissions_disabled = False

    def __init__(self) -> None:
        self.submissions: list[dict[str, Any]] = []
        self.data: Files = {}
        self.uploads: list[bytes] = []
        self.announced: dict[str, int] = {}
        self.put: set[str] = set()
        self.allowed = A_DAY
        self.limits: dict[str, int] | None = None
        self.submission_lag = 0  # looks at the list that come too early for a new submission

    def require_entry(self, body: dict[str, Any]) -> None:
        """Refuse another competition, and an account that has not accepted the rules."""
        if body["competitionName"] != COMPETITION:
            raise Refused(404, "Not found")
        if not self.rules_accepted:
            raise Refused(403, RULES)

    def do_StartSubmissionUpload(self, body: dict[str, Any]) -> Answer:
        self.require_entry(body)
        token = f"upload-{len(self.announced) + 1}"
        self.announced[token] = body["contentLength"]
        return {"token": token, "createUrl": f"{self.url}/upload/{token}"}

    def take_upload(self, token: str, content: bytes) -> int:
        """The status of an upload: it must have been announced, with its length (CLIENT: `StartSubmissionUpload`)."""
        if self.announced.get(token) != len(content):
            return 400
        self.put.add(token)
        self.uploads.append(content)
        return 200

    def do_CreateSubmission(self, body: dict[str, Any]) -> Answer:
        self.require_entry(body)
        if body["blobFileTokens"] not in self.put:
            raise Refused(400, "The uploaded file was not found")
        if self.allowed < 1:
            raise Refused(400, "Submission limit reached")  # USERS
        ref = 1000 + len(self.submissions)
        about = {"ref": ref, "description": body.get("submissionDescription", ""), "status": "PENDING"}
        self.submissions.append({**about, "looks": -self.submission_lag})
        self.allowed -= 1
        return {"message": "Successfully submitted", "ref": ref}

    def do_ListSubmissions(self, body: dict[str, Any]) -> Answer:
        self.require_entry(body)
        for one in self.submissions:
            one["looks"] += 1
            if one["looks"] > 1 and one["status"] == "PENDING":
                one |= {"status": "COMPLETE", "publicScore": "0.97123", "privateScore": "0.96543"}
        listed = [one for one in reversed(self.submissions) if one["looks"] > 0]
        return {"submissions": [{key: one[key] for key in one if key != "looks"} for one in listed]}

    def do_GetSubmissionLimits(self, body: dict[str, Any]) -> Answer:
        self.require_entry(body)
        if self.limits is not None:
            return dict(self.limits)
        return {"numToday": A_DAY - self.allowed, "numAllowedNow": self.allowed}

    def do_GetCompetition(self, body: dict[str, Any]) -> Answer:
        if body["competitionName"] != COMPETITION:
            raise Refused(404, "Not found")
        return self.competition()

    def do_ListCompetitions(self, body: dict[str, Any]) -> Answer:
        # CLI-740: a competition that has ended is listed only among those that the account has entered.
        return {"competitions": [self.competition()] if self.rules_accepted else []}

    def competition(self) -> Answer:
        """Return the competition. A flag that is not set is omitted (CLIENT: fields have defaults)."""
        flags = {"userHasEntered": self.rules_accepted, "submissionsDisabled": self.submissions_disabled}
        address = f"https://www.kaggle.com/competitions/{COMPETITION}"
        about = {"id": 11848, "ref": address, "title": "Histopathologic Cancer Detection", "maxDailySubmissions": A_DAY}
        return {**about, **{name: True for name, value in flags.items() if value}}
