"""Train and predict as typical competition code does, with Pillow and with torchvision's transforms and network.

It runs in one process in float32, decodes every file in each epoch, and pads the epoch with its sampler. Prediction
decodes the files again for each of eight views.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import models, transforms

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Patches(Dataset[tuple[Tensor, int]]):
    """The images of a folder with their labels."""

    def __init__(self, folder: Path, ids: Sequence[str], labels: Sequence[int], transform: Any) -> None:
        self.folder, self.ids, self.labels, self.transform = folder, list(ids), list(labels), transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return a decoded and transformed image, and its label."""
        with Image.open(self.folder / f"{self.ids[row]}.tif") as image:
            return self.transform(image.convert("RGB")), self.labels[row]


def train_transform() -> Any:
    """Return the training transform: resizing, flips, rotation, and ImageNet normalisation."""
    return transforms.Compose(
        [
            transforms.Resize((96, 96)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomRotation(20),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )


def view_transform(number: int) -> Any:
    """Return the transform for one of the eight views."""

    def apply_view(image: Image.Image) -> Image.Image:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number >= 4 else image
        return image.rotate(90 * (number % 4))

    steps = [transforms.Resize((96, 96)), apply_view, transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    return transforms.Compose(steps)


def create_loader(patches: Patches, batch: int, workers: int, *, shuffle: bool) -> DataLoader[Any]:
    """Return a loader with a sampler that pads the epoch."""
    sampler: DistributedSampler[Any] = DistributedSampler(patches, num_replicas=1, rank=0, shuffle=shuffle)
    return DataLoader(patches, batch_size=batch, sampler=sampler, num_workers=workers)


def create_network() -> nn.Module:
    """Return torchvision's DenseNet-121 with two classes, in contiguous memory format."""
    return models.densenet121(weights=None, num_classes=2)


def train(model: nn.Module, batches: DataLoader[Any], epochs: int) -> None:
    """Train with Adam and cross-entropy. Reads the loss of each step, which waits for the device."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    model.train()
    running = 0.0
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()


def predict(model: nn.Module, folder: Path, ids: Sequence[str], batch: int, workers: int, views: int = 8) -> Tensor:
    """Return the mean probability over the views. Each view decodes all files."""
    model.eval()
    total = torch.zeros(len(ids))
    with torch.no_grad():
        for number in range(views):
            patches = Patches(folder, ids, [0] * len(ids), view_transform(number))
            parts = [
                model(images).softmax(1)[:, 1] for images, _ in create_loader(patches, batch, workers, shuffle=False)
            ]
            total += torch.cat(parts)[: len(ids)]
    return total / views
