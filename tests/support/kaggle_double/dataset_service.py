"""The datasets on the simulated server: their files, by owner/dataset."""

from __future__ import annotations

from typing import Any

from tests.support.kaggle_double.kernel_service import Answer, Files
from tests.support.kaggle_double.wire import Refused


class DatasetService:
    """The datasets on Kaggle."""

    def __init__(self) -> None:
        self.datasets: dict[str, Files] = {}

    def dataset_files(self, body: dict[str, Any]) -> Files:
        """The files of a dataset. One that does not exist and a private one are answered alike."""
        name = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if name not in self.datasets:
            raise Refused(403, "Permission 'datasets.get' was denied")
        return self.datasets[name]

    def do_ListDatasetFiles(self, body: dict[str, Any]) -> Answer:
        return {"datasetFiles": [{"name": name, "totalBytes": len(x)} for name, x in self.dataset_files(body).items()]}
