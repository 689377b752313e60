"""Fixtures of all tests: generated patches, working folders, and functions that run a command."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:  # a session in Kaggle's image has another client than the double is made of
    from tests.support.kaggle_double import FakeKaggle, Files

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
gc.disable()  # while modules are imported, which all stay: torch, timm and scikit-learn make half a million objects

from claris_kaggle.core.console import messages_on_stderr  # noqa: E402
from claris_kaggle.core.paths import DataDir, RunDir  # noqa: E402

with contextlib.suppress(ImportError):  # the tests for a GPU run without hypothesis, too
    from hypothesis import settings

    # The same cases in every run; --hypothesis-profile=default draws others.
    settings.register_profile("same cases", derandomize=True)
    settings.load_profile("same cases")

ROOT = Path(__file__).parent.parent
# Modules that start several processes or train.
LONGEST = (
    "tests/system/", "tests/kaggle/test_session.py", "tests/models/test_sources.py", "tests/repo/test_papers.py",
    "tests/serving/test_app.py", "tests/serving/test_export.py",
)  # fmt: skip
DEADLINE = 300  # on a busy machine too
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TINY = [
    "--model", "tiny", "--weights", "none", "--threads", "1", "--epochs", "2", "--batch-size", "32",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest: with several test processes, none then waits for the end of one."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """Collect garbage again, without visiting all that was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own: no cache, token or setting of the user is seen."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(folder))
    return folder


@pytest.fixture(autouse=True)
def messages() -> Iterator[None]:
    """Show log messages as the command line does, seed torch, and check that signal handlers are restored."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with messages_on_stderr():
        yield
    assert kept == {number: signal.getsignal(number) for number in kept}, "a call left its handlers of signals"


@pytest.fixture(scope="session")
def sample() -> DataDir:
    """Real patches, where they are."""
    root = ROOT.parent / "shared" / "pcam-sample"
    if not root.is_dir():
        pytest.skip("the sample of real patches is not here")
    return DataDir(root)


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder that all test processes share and never write to. The first process that asks builds it.

    CLARIS_TESTS_SHARED names the place of such folders, to keep them for the next run of the tests.
    """
    base = factory.getbasetemp()
    own = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder = Path(os.environ.get("CLARIS_TESTS_SHARED", own)) / name
    folder.parent.mkdir(exist_ok=True, parents=True)
    built = folder.with_suffix(".built")
    with FileLock(folder.with_suffix(".lock")):
        if not built.exists():
            build(folder)
            built.touch()
    return folder


def _generate_once(factory: pytest.TempPathFactory, name: str, *, train: int, test: int, slides: int) -> DataDir:
    """Return the shared folder `name` of generated patches."""
    from claris_kaggle.data.synthetic import generate

    def build(folder: Path) -> None:
        generate(folder, train=train, test=test, slides=slides)

    return DataDir(build_once(factory, name, build))


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """240 training and 70 test patches of 12 slides; never written to."""
    return _generate_once(tmp_path_factory, "data", train=240, test=70, slides=12)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """60 training and 12 test patches of 6 slides, for whole commands on many folds; never written to."""
    return _generate_once(tmp_path_factory, "few", train=60, test=12, slides=6)


@pytest.fixture(scope="session")
def handful(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """20 training and 4 test patches of 5 slides, to be copied and changed; never written to."""
    return _generate_once(tmp_path_factory, "handful", train=20, test=4, slides=5)


@pytest.fixture(scope="session")
def cache(generated: DataDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packs of the generated patches."""
    from claris_kaggle.data.prepare import make_packs

    def build(folder: Path) -> None:
        make_packs(generated, folder)

    return build_once(tmp_path_factory, "cache", build)


@pytest.fixture(scope="session")
def fold_file(generated: DataDir, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of the generated patches, by slide."""
    from claris_kaggle.data.prepare import make_fold_file

    def build(folder: Path) -> None:
        folder.mkdir()
        make_fold_file(generated, folder / "three.csv", slides=generated.root / "slides.csv", k=3, cache=cache)

    return build_once(tmp_path_factory, "folds", build) / "three.csv"


@pytest.fixture(scope="session")
def finished(generated: DataDir, cache: Path, fold_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of the tiny network in one process, trained and predicted; never written to."""
    from claris_kaggle.cli.main import main

    def build(run: Path) -> None:
        places = ["--data", str(generated.root), "--run", str(run), "--cache", str(cache)]
        for arguments in (["train", *places, "--folds", str(fold_file), *TINY], ["predict", *places]):
            assert main(arguments) == 0

    return RunDir(build_once(tmp_path_factory, "finished", build))


@pytest.fixture(scope="session")
def report(generated: DataDir, finished: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the finished run with pictures; never written to."""
    from claris_kaggle.reporting.report import write_report

    def build(folder: Path) -> None:
        folder.mkdir()
        write_report([finished], folder / "report.html", data=generated)

    return build_once(tmp_path_factory, "report", build) / "report.html"


@dataclass(frozen=True)
class Printed:
    """The output of a command and of the processes that it started."""

    stdout: str
    stderr: str


@contextlib.contextmanager
def _streams_to(out: Path, err: Path) -> Iterator[None]:
    """Send the streams of this process, and of the processes that it starts, to these files."""
    kept = os.dup(1), os.dup(2)
    try:
        with out.open("w") as shown, err.open("w") as said:
            os.dup2(shown.fileno(), 1)
            os.dup2(said.fileno(), 2)
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
                yield
    finally:
        for number, one in enumerate(kept, start=1):
            os.dup2(one, number)
            os.close(one)


@dataclass(frozen=True)
class TwoProcessRun:
    """A run whose fold 0 was trained and predicted by two processes, and what its commands printed."""

    run: RunDir
    train: Printed
    predict: Printed


@pytest.fixture(scope="session")
def of_two(generated: DataDir, cache: Path, fold_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoProcessRun:
    """A run of the tiny network in two processes, which this one starts; never written to."""
    from claris_kaggle.cli.main import main

    def build(folder: Path) -> None:
        folder.mkdir()
        places = ["--data", generated.root, "--run", folder / "of-two", "--cache", cache, "--nproc", 2]
        printed = []
        for command in (["train", *places, "--folds", fold_file, *TINY, "--fold", 0], ["predict", *places]):
            with _streams_to(folder / "stdout", folder / "stderr"):
                code = main([str(one) for one in command])
            printed.append(Printed((folder / "stdout").read_text(), (folder / "stderr").read_text()))
            assert code == 0, printed[-1].stderr
        (folder / "printed.pickle").write_bytes(pickle.dumps(printed))

    folder = build_once(tmp_path_factory, "two", build)
    return TwoProcessRun(RunDir(folder / "of-two"), *pickle.loads((folder / "printed.pickle").read_bytes()))


@functools.cache
def _one_bundle() -> bytes:
    """The library as it is pushed, packed once."""
    from claris_kaggle.kaggle.kernel_source import _build_bundle

    return _build_bundle()


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[FakeKaggle]:
    """A fresh server, with the environment that points the client at it and quick retries."""
    from tests.support.kaggle_double import FakeKaggle

    fake = FakeKaggle()
    for name, value in fake.environment(str(home)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("claris_kaggle.kaggle.api._CALL_PAUSES", (0.0, 0.0, 0.0))
    bundle = _one_bundle()
    monkeypatch.setattr("claris_kaggle.kaggle.kernel_source._build_bundle", lambda: bundle)
    yield fake
    fake.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the real client run in this process, for tests with many calls; its own process is tested by the others."""
    from claris_kaggle.kaggle import api
    from tests.support.client_here import ClientHere

    monkeypatch.setattr(api, "subprocess", ClientHere)


def run_files(run: RunDir, folds: tuple[int, ...] = (0, 1, 2)) -> Files:
    """What a training session leaves of these folds."""
    kept = {}
    for name, content in contents(run.root).items():
        top, base = name.split("/")[0], name.split("/")[-1]
        wanted = top in {f"fold{fold}" for fold in folds} and not base.startswith(("last", "best"))
        if wanted or name in ("config.json", "folds.csv", "folds.json"):
            kept[f"run/{name}"] = content
    return kept


@pytest.fixture
def trained(kaggle: FakeKaggle, finished: RunDir, generated: DataDir) -> FakeKaggle:
    """A server whose training kernels leave the finished run, or the folds that they were asked for."""
    kaggle.produce = lambda settings: (run_files(finished, tuple(settings["folds"]) or (0, 1, 2)), "complete")
    kaggle.data["sample_submission.csv"] = generated.sample.read_bytes()
    return kaggle


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a new profile."""
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here: pip install '.[dev]'")
    with playwright.sync_playwright() as started:
        profile = tmp_path_factory.mktemp("profile")
        context = started.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=list(FLAGS)
        )
        yield context
        context.close()


def open_page(browser: Any, address: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page as it is shown, and everything that went wrong or was asked of others."""
    page, faults = browser.new_page(), []
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("request", lambda one: None if one.url.startswith((address, "data:")) else faults.append(one.url))
    page.goto(address)
    return page, faults


def environment() -> dict[str, str]:
    """The environment of a started command: one thread a process, nothing of torchrun's."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def claris(*arguments: object, cwd: Path | None = None, deadline: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "claris_kaggle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=deadline, cwd=cwd, env=environment())


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: its exit code, stdout and stderr."""
    from claris_kaggle.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def shuffle_rows(source: Path, target: Path, seed: int = 1) -> None:
    """Copy a CSV with its rows in another order."""
    header, *rows = source.read_text("utf-8").splitlines()
    random.Random(seed).shuffle(rows)
    target.write_text("\n".join([header, *rows]) + "\n", "utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_archive(data: DataDir) -> bytes:
    """The competition's archive, as Kaggle would send it."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in contents(data.root).items():
            archive.writestr(name, content)
    return stream.getvalue()
