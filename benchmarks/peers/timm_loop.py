"""Train and predict with the steps of timm's train.py and inference.py."""

import sys
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from timm import create_model
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy
from torch.utils.data import Dataset

from benchmarks.peers import clock  # measured


class Patches(Dataset):
    def __init__(self, folder, frame):
        self.paths, self.labels = [folder / f"{name}.tif" for name in frame.id], frame.label.tolist()
        self.transform = None

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        return self.transform(Image.open(self.paths[row]).convert("RGB")), self.labels[row]


data, name, epochs, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
labels, test = pd.read_csv(data / "train_labels.csv"), pd.read_csv(data / "sample_submission.csv")
train, valid = train_test_split(labels, test_size=0.2, stratify=labels.label, random_state=0)
options = dict(input_size=(3, 96, 96), batch_size=batch, num_workers=0, persistent_workers=False, device=device)
augmentation = dict(scale=(1, 1), ratio=(1, 1), hflip=0.5, vflip=0.5, color_jitter=None)
batches = create_loader(Patches(data / "train", train), is_training=True, **augmentation, **options)
valid_batches = create_loader(Patches(data / "train", valid), crop_pct=1, **options)
test_batches = create_loader(Patches(data / "test", test), crop_pct=1, **options)
model = create_model(name, num_classes=2).to(device)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(optimizer, "cosine", epochs, step_on_epochs=False, updates_per_epoch=len(batches))
criterion, step = torch.nn.CrossEntropyLoss(), 0

for epoch in range(epochs):
    clock.start()  # measured
    model.train()
    losses = AverageMeter()
    for images, targets in batches:
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(images))
        step += 1
        scheduler.step_update(step)
    clock.stop("train", len(train))  # measured
    model.eval()
    top1 = AverageMeter()
    with torch.inference_mode():
        for images, targets in valid_batches:
            top1.update(accuracy(model(images), targets)[0].item(), len(images))
    print(f"epoch {epoch + 1}: loss {losses.avg:.4f}, validation accuracy {top1.avg:.1f} %")
torch.save(model.state_dict(), "model.pth")

clock.start()  # measured
with torch.inference_mode():
    parts = [model(images).softmax(1)[:, 1].cpu() for part in (valid_batches, test_batches) for images, _ in part]
clock.stop("predict", len(valid) + len(test))  # measured
frame = pd.concat([valid, test])
frame.assign(probability=torch.cat(parts).numpy())[["id", "probability"]].to_csv("predictions.csv", index=False)
