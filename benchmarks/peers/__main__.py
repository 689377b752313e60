"""Other libraries against ours, from the command to the file of predictions.

python -m benchmarks.peers                                          # DenseNet-121, 1,200 patches
python -m benchmarks.peers --model resnet18 --patches 300 --epochs 1 --threads 1 --rounds 2
python -m benchmarks.peers --quick                                  # a short trial with a small network

Each contender is a script or a list of commands of this folder and runs in a process of its own, in an empty folder.
A peer that is not installed is left out; `pip install -e '.[peers]'` installs them.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.full_size import Usage, use_command
from benchmarks.patches import Bench, bench_patches
from benchmarks.timing import QUICK, ROOT, THREADS, Grid, number, option, publish
from claris_kaggle.core.errors import format_count
from claris_kaggle.data.tables import write_table

SCRIPTS = Path(__file__).parent
COMMANDS = SCRIPTS / "claris_commands.txt"
MODEL = option("--model", "test_resnet.r160_in1k" if QUICK else "densenet121")
PATCHES = int(option("--patches", "40" if QUICK else "1200"))
EPOCHS = int(option("--epochs", "1" if QUICK else "2"))
BATCH = int(option("--batch-size", "8" if QUICK else "32"))
ROUNDS = 1 if QUICK else int(option("--rounds", "3"))
USED_THREADS = int(option("--threads", str(THREADS)))
FOLDS = 5
COLUMNS = (
    "task", "contender", "s", "range", "times ours", "CPU s", "times ours", "training images/s", "prediction images/s",
    "MB", "lines",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A library and the script of a user.

    Attributes:
        name: of the library.
        package: that has to be installed.
        script: a file of this folder.
    """

    name: str
    package: str
    script: str

    def version(self) -> str:
        """Return the installed version; empty if it is not installed."""
        return importlib.metadata.version(self.package) if importlib.util.find_spec(self.package) else ""


TRAINERS = (
    Peer("timm", "timm", "timm_loop.py"),
    Peer("Lightning", "lightning", "lightning_loop.py"),
    Peer("fastai", "fastai", "fastai_loop.py"),
)
PREDICTOR = Peer("TIAToolbox", "tiatoolbox", "tiatoolbox_predict.py")


@dataclass
class Measured:
    """A whole run of a contender.

    Attributes:
        usage: seconds and CPU seconds of all its commands, and the largest memory of any of them.
        rates: images per second, by part (`train`, `predict`).
        probabilities: by patch id.
    """

    usage: Usage = field(default_factory=lambda: Usage(0.0, 0.0, 0.0))
    rates: dict[str, float] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)

    def add(self, used: Usage) -> None:
        """Add a command that ran after the others."""
        largest = max(self.usage.megabytes, used.megabytes)
        self.usage = Usage(self.usage.seconds + used.seconds, self.usage.busy + used.busy, largest)


def write_data(bench: Bench, folder: Path) -> Path:
    """Write the patches in the competition's layout, and return its folder.

    The test patches are four fifths of the training patches. With the fifth that is held out of training, as many
    patches are predicted as there are.
    """
    ids = bench.trainset.ids[:PATCHES]
    test = ids[: len(ids) - len(ids) // FOLDS]
    for split, names in (("train", ids), ("test", test)):
        (folder / split).mkdir(parents=True)
        for name in names:
            shutil.copy(bench.data.patches("train") / f"{name}.tif", folder / split)
    write_table(folder / "train_labels.csv", {"id": ids, "label": bench.trainset.labels[: len(ids)]})
    write_table(folder / "sample_submission.csv", {"id": test, "label": [0] * len(test)})
    return folder


def user_lines(path: Path) -> int:
    """Return the number of lines that a user writes, without empty lines, comments, docstring and time measurement."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) and not line.endswith("# measured") for line in lines)


def claris_commands(data: Path) -> list[list[str]]:
    """Return our commands with their arguments."""
    text = COMMANDS.read_text("utf-8").replace("\\\n", " ")
    values = {"data": data.as_posix(), "model": MODEL, "epochs": EPOCHS, "batch": BATCH, "threads": USED_THREADS}
    return [shlex.split(line.format(**values))[1:] for line in text.splitlines()]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a contender: the number of threads, and caches in its folder."""
    own = {"OMP_NUM_THREADS": str(USED_THREADS), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"}


def read_probabilities(*paths: Path) -> dict[str, float]:
    """Return the probabilities of the result files by patch id.

    Raises:
        SystemExit: patches are missing, or a value is no probability.
    """
    rows: list[tuple[str, float]] = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            rows += [(row["id"], float(row["probability"])) for row in csv.DictReader(file)]
    if len(rows) != PATCHES or not all(0 <= value <= 1 for _, value in rows):
        raise SystemExit(f"{paths[0]}: found {len(rows)} rows, expected probabilities of {PATCHES} patches")
    return dict(rows)


def rates_in(said: str) -> dict[str, float]:
    """Return the images per second of each part from the lines that `clock.stop` printed."""
    totals: dict[str, tuple[float, float]] = {}
    for part, images, seconds in re.findall(r"measured (\w+) (\d+) (\S+)", said):
        before = totals.get(part, (0.0, 0.0))
        totals[part] = (before[0] + float(images), before[1] + float(seconds))
    return {part: images / seconds for part, (images, seconds) in totals.items()}


def run_script(peer: Peer, arguments: Sequence[object], folder: Path) -> Measured:
    """Run the script of a peer in an empty folder."""
    command = [sys.executable, str(SCRIPTS / peer.script), *map(str, arguments)]
    used, said = use_command(command, cwd=folder, env=environment(folder))
    result = Measured(rates=rates_in(said), probabilities=read_probabilities(folder / "predictions.csv"))
    result.add(used)
    return result


def run_claris(commands: Iterable[Sequence[str]], folder: Path) -> Measured:
    """Run our commands in a folder. The last one predicts."""
    result, fold = Measured(), folder / "run" / "fold0"
    for arguments in commands:
        command = [sys.executable, "-m", "claris_kaggle", *arguments]
        used, said = use_command(command, cwd=folder, env=environment(folder))
        result.add(used)
        if match := re.search(r"predicted [\d,]+ patches at ([\d,]+) per second", said):
            result.rates["predict"] = float(match[1].replace(",", ""))
        if arguments[0] == "train":
            with (fold / "history.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            result.rates["train"] = statistics.harmonic_mean([float(row["images_per_second"]) for row in rows])
    result.probabilities = read_probabilities(fold / "oof.csv", fold / "test.csv")
    return result


def measure_training(data: Path, root: Path, index: int) -> Iterator[tuple[str, Measured]]:
    """Train and predict with each contender in turn, ours first. Our trained network stays in `root`."""
    for name, peer in (("claris", None), *((peer.name, peer) for peer in TRAINERS if peer.version())):
        folder = root / f"{name}{index}"
        folder.mkdir()
        if peer:
            yield name, run_script(peer, [data, MODEL, EPOCHS, BATCH], folder)
            shutil.rmtree(folder)
        else:
            yield name, run_claris(claris_commands(data), folder)


def measure_prediction(data: Path, root: Path, index: int) -> Iterator[tuple[str, Measured]]:
    """Predict with our trained network, by our command and by TIAToolbox."""
    run = root / f"claris{index}" / "run"
    folder = root / f"predict{index}"
    shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("oof.csv", "test.csv", "predictions.json"))
    yield "claris", run_claris(claris_commands(data)[-1:], folder)
    if PREDICTOR.version():
        arguments = [data, MODEL, BATCH, run / "fold0" / "model.safetensors"]
        yield PREDICTOR.name, run_script(PREDICTOR, arguments, folder)
    shutil.rmtree(folder)


def median_of(values: Iterable[float]) -> float:
    """Return the median, and 0 of nothing."""
    return statistics.median(list(values) or [0.0])


def write_rows(task: str, found: dict[str, list[Measured]], lines: dict[str, int]) -> list[list[str]]:
    """Return the rows of a task: medians over the rounds, and ratios to our run of the same round."""
    rows, ours = [], found["claris"]
    for name, results in found.items():
        seconds, busy = ([getattr(one.usage, what) for one in results] for what in ("seconds", "busy"))
        against, busy_against = (
            median_of(value / getattr(base.usage, what) for value, base in zip(values, ours, strict=True))
            for what, values in (("seconds", seconds), ("busy", busy))
        )
        rates = [median_of(one.rates[part] for one in results if part in one.rates) for part in ("train", "predict")]
        rows.append(
            [
                task, name, number(median_of(seconds)), f"{number(min(seconds))} to {number(max(seconds))}",
                f"**{against:.2f}**", number(median_of(busy)), f"**{busy_against:.2f}**",
                *(number(rate) if rate else "" for rate in rates),
                f"{median_of(one.usage.megabytes for one in results):,.0f}", str(lines[name]),
            ]
        )  # fmt: skip
    return rows


def largest_difference(one: Measured, other: Measured) -> float:
    """Return the largest difference between two probabilities of the same patch."""
    both = one.probabilities.keys() & other.probabilities.keys()
    return max(abs(one.probabilities[name] - other.probabilities[name]) for name in both)


def write_grid(trained: dict[str, list[Measured]], predicted: dict[str, list[Measured]], about: str) -> Grid:
    """Return the table of both tasks."""
    lines = {peer.name: user_lines(SCRIPTS / peer.script) for peer in (*TRAINERS, PREDICTOR)}
    ours = user_lines(COMMANDS)
    return Grid(
        name="peers",
        title=f"other libraries, {MODEL}, {PATCHES:,} {about}",
        columns=list(COLUMNS),
        rows=[
            *write_rows("train and predict", trained, {**lines, "claris": ours}),
            *write_rows("predict", predicted, {**lines, "claris": 1}),
        ],
        facts=write_facts(predicted),
        notes=[
            "Each contender runs from the command to the file of predictions: "
            f"{format_count(EPOCHS, 'epoch')} over four fifths of the patches, each followed by a validation on the "
            f"other fifth, then one view of each patch. Batch size {BATCH}, fp32, random initial weights, "
            f"{format_count(USED_THREADS, 'thread')}, no loader processes. "
            f"Medians of {format_count(len(trained['claris']), 'round')}.",
            "images/s: of the training loop and of the prediction alone, without start and validation. MB: the peak "
            "of the process's own memory, without mapped files. Lines: what a user writes, without empty lines, "
            "comments and the measurement.",
        ],
    )


def write_facts(predicted: dict[str, list[Measured]]) -> dict[str, str]:
    """Return the versions of the peers, and how far the predictions of the same weights differ."""
    versions = [f"{peer.name} {peer.version() or 'is not installed'}" for peer in (*TRAINERS, PREDICTOR)]
    facts = {"peers": ", ".join(versions)}
    if PREDICTOR.name in predicted:
        differences = map(largest_difference, predicted["claris"], predicted[PREDICTOR.name])
        facts[f"largest difference of a probability to {PREDICTOR.name}"] = f"{max(differences):.1e}"
    return facts


def main() -> None:
    """Measure; print and keep the table after each round."""
    trained: dict[str, list[Measured]] = {}
    predicted: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as temporary, bench_patches(PATCHES) as bench:
        root, about = Path(temporary), bench.about.split(" ", 1)[1]
        data = write_data(bench, root / "data")
        for index in range(ROUNDS):
            for found, measure in ((trained, measure_training), (predicted, measure_prediction)):
                for name, result in measure(data, root, index):
                    found.setdefault(name, []).append(result)
                    print(f"round {index + 1} of {ROUNDS}: {name} {result.usage}", file=sys.stderr, flush=True)
            shutil.rmtree(root / f"claris{index}")
            publish(write_grid(trained, predicted, about))


if __name__ == "__main__":
    main()
