"""Compare claris with other libraries, from the command to the file of predictions.

python -m benchmarks.peers                                          # DenseNet-121, 1,200 patches
python -m benchmarks.peers --model resnet18 --patches 300 --epochs 1 --threads 1 --rounds 2
python -m benchmarks.peers --quick                                  # a short trial with a small network

Each contender is a script or a list of commands in this folder. It runs in its own process in an empty folder.
A library that is not installed is left out; `pip install -e '.[peers]'` installs them.
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

from benchmarks.patches import BenchmarkPatches, prepare_patches
from benchmarks.processes import Usage, claris_command, measure_command
from benchmarks.timing import QUICK, ROOT, THREADS, Grid, format_rate, option, publish
from claris_kaggle.core.errors import format_count
from claris_kaggle.data.tables import write_table

SCRIPTS = Path(__file__).parent
COMMANDS = SCRIPTS / "claris_commands.txt"
MODEL = option("--model", "test_resnet.r160_in1k" if QUICK else "densenet121")
PATCHES = int(option("--patches", "40" if QUICK else "1200"))
EPOCHS = int(option("--epochs", "1" if QUICK else "2"))
BATCH = int(option("--batch-size", "8" if QUICK else "32"))
ROUNDS = 1 if QUICK else int(option("--rounds", "3"))
PEER_THREADS = int(option("--threads", str(THREADS)))
FOLDS = 5
COLUMNS = (
    "task", "contender", "s", "range", "ratio", "CPU s", "ratio", "training images/s", "prediction images/s",
    "MB", "lines",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """Another library and its script.

    Attributes:
        name: name of the library.
        package: Python package of the library.
        script: file name in this folder.
    """

    name: str
    package: str
    script: str

    def version(self) -> str:
        """Return the installed version, or an empty string."""
        return importlib.metadata.version(self.package) if importlib.util.find_spec(self.package) else ""


TRAINERS = (
    Peer("timm", "timm", "timm_loop.py"),
    Peer("Lightning", "lightning", "lightning_loop.py"),
    Peer("fastai", "fastai", "fastai_loop.py"),
)
PREDICTOR = Peer("TIAToolbox", "tiatoolbox", "tiatoolbox_predict.py")


@dataclass
class Measurement:
    """One run of a contender.

    Attributes:
        usage: time and CPU time of all its commands, and the largest memory of any of them.
        rates: images per second of each part (`train`, `predict`).
        probabilities: probability by patch id.
    """

    usage: Usage = field(default_factory=lambda: Usage(0.0, 0.0, 0.0))
    rates: dict[str, float] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)

    def add(self, other: Usage) -> None:
        """Add the usage of one more command."""
        self.usage = Usage(
            self.usage.seconds + other.seconds,
            self.usage.cpu_seconds + other.cpu_seconds,
            max(self.usage.megabytes, other.megabytes),
        )


def write_data(patches: BenchmarkPatches, folder: Path) -> Path:
    """Write the patches in the competition's layout, and return its folder.

    The test patches are copies of four fifths of the training patches. Together with the validation patches of fold 0,
    each patch is predicted once.
    """
    ids = patches.trainset.ids[:PATCHES]
    test = ids[: len(ids) - len(ids) // FOLDS]
    for split, names in (("train", ids), ("test", test)):
        (folder / split).mkdir(parents=True)
        for name in names:
            shutil.copy(patches.data.patches("train") / f"{name}.tif", folder / split)
    write_table(folder / "train_labels.csv", {"id": ids, "label": patches.trainset.labels[: len(ids)]})
    write_table(folder / "sample_submission.csv", {"id": test, "label": [0] * len(test)})
    return folder


def count_user_lines(path: Path) -> int:
    """Return the number of lines that a user writes, without empty lines, comments, docstring and measurement."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) and not line.endswith("# measured") for line in lines)


def claris_commands(data: Path) -> list[list[str]]:
    """Return the commands of claris with their arguments, without the program name."""
    text = COMMANDS.read_text("utf-8").replace("\\\n", " ")
    values = {"data": data.as_posix(), "model": MODEL, "epochs": EPOCHS, "batch": BATCH, "threads": PEER_THREADS}
    return [shlex.split(line.format(**values))[1:] for line in text.splitlines()]


def contender_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a contender: the number of threads, and caches in its folder."""
    variables = {"OMP_NUM_THREADS": str(PEER_THREADS), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **variables, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"}


def read_probabilities(*paths: Path) -> dict[str, float]:
    """Return the probability of each patch id in these files.

    Raises:
        SystemExit: patches are missing, or a value is not a probability.
    """
    rows: list[tuple[str, float]] = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            rows += [(row["id"], float(row["probability"])) for row in csv.DictReader(file)]
    if len(rows) != PATCHES or not all(0 <= value <= 1 for _, value in rows):
        raise SystemExit(f"{paths[0]}: found {len(rows)} rows, expected probabilities of {PATCHES} patches")
    return dict(rows)


def read_rates(output: str) -> dict[str, float]:
    """Return the images per second of each part from the lines that `clock.stop` prints."""
    totals: dict[str, tuple[float, float]] = {}
    for part, images, seconds in re.findall(r"measured (\w+) (\d+) (\S+)", output):
        total_images, total_seconds = totals.get(part, (0.0, 0.0))
        totals[part] = (total_images + float(images), total_seconds + float(seconds))
    return {part: images / seconds for part, (images, seconds) in totals.items()}


def run_script(peer: Peer, arguments: Sequence[object], folder: Path) -> Measurement:
    """Run the script of a library in an empty folder."""
    command = [sys.executable, str(SCRIPTS / peer.script), *map(str, arguments)]
    usage, output = measure_command(command, cwd=folder, env=contender_environment(folder))
    result = Measurement(rates=read_rates(output), probabilities=read_probabilities(folder / "predictions.csv"))
    result.add(usage)
    return result


def run_commands(commands: Iterable[Sequence[str]], folder: Path) -> Measurement:
    """Run commands of claris in a folder. The last one is `predict`."""
    result, fold = Measurement(), folder / "run" / "fold0"
    for arguments in commands:
        command = claris_command(*arguments)
        usage, output = measure_command(command, cwd=folder, env=contender_environment(folder))
        result.add(usage)
        if match := re.search(r"predicted [\d,]+ patches at ([\d,]+) per second", output):
            result.rates["predict"] = float(match[1].replace(",", ""))
        if arguments[0] == "train":
            with (fold / "history.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            result.rates["train"] = statistics.harmonic_mean([float(row["images_per_second"]) for row in rows])
    result.probabilities = read_probabilities(fold / "oof.csv", fold / "test.csv")
    return result


def measure_training(data: Path, root: Path, index: int) -> Iterator[tuple[str, Measurement]]:
    """Train and predict with each contender in turn, claris first. Its trained network stays in `root`."""
    for name, peer in (("claris", None), *((peer.name, peer) for peer in TRAINERS if peer.version())):
        folder = root / f"{name}{index}"
        folder.mkdir()
        if peer:
            yield name, run_script(peer, [data, MODEL, EPOCHS, BATCH], folder)
            shutil.rmtree(folder)
        else:
            yield name, run_commands(claris_commands(data), folder)


def measure_prediction(data: Path, root: Path, index: int) -> Iterator[tuple[str, Measurement]]:
    """Predict with the network that claris trained, with `claris predict` and with TIAToolbox."""
    run = root / f"claris{index}" / "run"
    folder = root / f"predict{index}"
    shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("oof.csv", "test.csv", "predictions.json"))
    yield "claris", run_commands(claris_commands(data)[-1:], folder)
    if PREDICTOR.version():
        arguments = [data, MODEL, BATCH, run / "fold0" / "model.safetensors"]
        yield PREDICTOR.name, run_script(PREDICTOR, arguments, folder)
    shutil.rmtree(folder)


def median_of(values: Iterable[float]) -> float:
    """Return the median; 0 if there are no values."""
    return statistics.median(list(values) or [0.0])


def format_rows(task: str, measured: dict[str, list[Measurement]], lines: dict[str, int]) -> list[list[str]]:
    """Return the rows of a task: medians over the rounds, and ratios to claris in the same round."""
    rows, base = [], measured["claris"]
    for name, results in measured.items():
        seconds, cpu_seconds = ([getattr(one.usage, key) for one in results] for key in ("seconds", "cpu_seconds"))
        ratio, cpu_ratio = (
            median_of(value / getattr(one.usage, key) for value, one in zip(values, base, strict=True))
            for key, values in (("seconds", seconds), ("cpu_seconds", cpu_seconds))
        )
        rates = [median_of(one.rates[part] for one in results if part in one.rates) for part in ("train", "predict")]
        rows.append(
            [
                task, name, format_rate(median_of(seconds)),
                f"{format_rate(min(seconds))} to {format_rate(max(seconds))}",
                f"**{ratio:.2f}**", format_rate(median_of(cpu_seconds)), f"**{cpu_ratio:.2f}**",
                *(format_rate(rate) if rate else "" for rate in rates),
                f"{median_of(one.usage.megabytes for one in results):,.0f}", str(lines[name]),
            ]
        )  # fmt: skip
    return rows


def largest_difference(one: Measurement, other: Measurement) -> float:
    """Return the largest difference between the probabilities of the same patch."""
    common = one.probabilities.keys() & other.probabilities.keys()
    return max(abs(one.probabilities[name] - other.probabilities[name]) for name in common)


def create_grid(trained: dict[str, list[Measurement]], predicted: dict[str, list[Measurement]], kind: str) -> Grid:
    """Return the table of both tasks."""
    lines = {peer.name: count_user_lines(SCRIPTS / peer.script) for peer in (*TRAINERS, PREDICTOR)}
    return Grid(
        name="peers",
        title=f"other libraries, {MODEL}, {PATCHES:,} {kind}",
        columns=list(COLUMNS),
        rows=[
            *format_rows("train and predict", trained, {**lines, "claris": count_user_lines(COMMANDS)}),
            *format_rows("predict", predicted, {**lines, "claris": 1}),
        ],
        facts=describe_peers(predicted),
        notes=[
            "Each contender runs from the command to the file of predictions: "
            f"{format_count(EPOCHS, 'epoch')} over four fifths of the patches, each followed by a validation on the "
            f"other fifth, then one view of each patch. Batch size {BATCH}, fp32, random initial weights, "
            f"{format_count(PEER_THREADS, 'thread')}, no loader processes. "
            f"Medians of {format_count(len(trained['claris']), 'round')}, and of the ratios to claris in the same "
            "round.",
            "images/s: rate of the training loop and of the prediction, without start and validation. MB: the peak "
            "of the process's own memory, without mapped files. Lines: what a user writes, without empty lines, "
            "comments and the measurement.",
        ],
    )


def describe_peers(predicted: dict[str, list[Measurement]]) -> dict[str, str]:
    """Return the versions of the libraries, and the largest difference between predictions of the same weights."""
    versions = [f"{peer.name} {peer.version() or 'is not installed'}" for peer in (*TRAINERS, PREDICTOR)]
    facts = {"peers": ", ".join(versions)}
    if PREDICTOR.name in predicted:
        differences = map(largest_difference, predicted["claris"], predicted[PREDICTOR.name])
        facts[f"largest difference of a probability to {PREDICTOR.name}"] = f"{max(differences):.1e}"
    return facts


def main() -> None:
    """Run the benchmark, print the result and save it."""
    trained: dict[str, list[Measurement]] = {}
    predicted: dict[str, list[Measurement]] = {}
    with tempfile.TemporaryDirectory() as temporary, prepare_patches(PATCHES) as patches:
        root, kind = Path(temporary), patches.description.split(" ", 1)[1]
        data = write_data(patches, root / "data")
        for index in range(ROUNDS):
            for measured, measure in ((trained, measure_training), (predicted, measure_prediction)):
                for name, result in measure(data, root, index):
                    measured.setdefault(name, []).append(result)
                    print(f"round {index + 1} of {ROUNDS}: {name} {result.usage}", file=sys.stderr, flush=True)
            shutil.rmtree(root / f"claris{index}")
            publish(create_grid(trained, predicted, kind))  # after each round, so that an interrupted run keeps results


if __name__ == "__main__":
    main()
