"""Train and predict with Lightning's Trainer."""

import sys
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from timm import create_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.peers import clock  # measured


class Patches(Dataset):
    def __init__(self, folder, frame, transform):
        self.paths, self.labels = [folder / f"{name}.tif" for name in frame.id], frame.label.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        return self.transform(Image.open(self.paths[row]).convert("RGB")), self.labels[row]


class Classifier(L.LightningModule):
    def __init__(self, name):
        super().__init__()
        self.model = create_model(name, num_classes=2)

    def training_step(self, batch, number):
        loss = cross_entropy(self.model(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, number):
        logits = self.model(batch[0])
        self.log("valid_loss", cross_entropy(logits, batch[1]))
        self.log("valid_accuracy", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def predict_step(self, batch, number, dataloader_idx=0):
        return self.model(batch[0]).softmax(1)[:, 1]

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Times(L.Callback):  # measured
    def on_train_epoch_start(self, trainer, module):  # measured
        clock.start()  # measured

    def on_validation_start(self, trainer, module):  # measured
        if not trainer.sanity_checking:  # measured
            clock.stop("train", len(train))  # measured


data, name, epochs, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
labels, test = pd.read_csv(data / "train_labels.csv"), pd.read_csv(data / "sample_submission.csv")
train, valid = train_test_split(labels, test_size=0.2, stratify=labels.label, random_state=0)
normalised = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
flipped = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), *normalised]
train_set = Patches(data / "train", train, transforms.Compose(flipped))
valid_set = Patches(data / "train", valid, transforms.Compose(normalised))
test_set = Patches(data / "test", test, transforms.Compose(normalised))
batches = DataLoader(train_set, batch, shuffle=True, drop_last=True)
valid_batches, test_batches = DataLoader(valid_set, batch), DataLoader(test_set, batch)
model = Classifier(name)
trainer = L.Trainer(
    max_epochs=epochs,
    callbacks=[Times()],  # measured
)
trainer.fit(model, batches, valid_batches)

clock.start()  # measured
parts = trainer.predict(model, [valid_batches, test_batches])
clock.stop("predict", len(valid) + len(test))  # measured
frame = pd.concat([valid, test]).assign(probability=torch.cat([part for one in parts for part in one]).numpy())
frame[["id", "probability"]].to_csv("predictions.csv", index=False)
