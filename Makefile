# One environment for everything: built once, again only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export NO_ALBUMENTATIONS_UPDATE := 1
# Compiled modules are kept: the tests start a hundred processes, and pytest rewrites every assert that is not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-slow test-kaggle test-kaggle-next coverage mutants docs dist bench bench-gpu lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): setup.py claris_kaggle/version.py
	rm -f $(READY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

setup: $(READY)  ## build the environment in .venv

demo: $(READY)  ## the whole way on generated patches: a checked submission and a report
	$(BIN)/claris demo --out demo-output

test: $(READY)  ## the fast tests, in two processes
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-slow: $(READY)  ## the long tests, in two processes
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist worksteal

# Processes that a test starts are not counted.
coverage: $(READY)  ## the lines of the package that the fast tests run; fails where they become fewer
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal --cov claris_kaggle \
		--cov-report term-missing:skip-covered --cov-fail-under 95
	$(BIN)/coverage report --include "claris_kaggle/evaluation/*,claris_kaggle/ensembling/*" --fail-under 99

# What the tests share is built once, before the first change of the code, and kept for all of them.
mutants: $(READY)  ## changes to the code of scores and submissions that no test notices; an hour or more
	CLARIS_TESTS_SHARED=$(CURDIR)/build/mutants OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

# What a Kaggle session does, under the versions of its image; 5 minutes at most. The tests of the user's own machine
# run in .venv alone: they need kaggle>=2.2.5, and no such machine has the image's versions. The library is installed
# without its dependencies, since the image's kaggle is older than setup.py asks for and no session imports it.
# SciPy 1.16 in the image warns of an option that its scikit-learn 1.6.1 sets, and anyio's plugin is older than pytest.
SESSION_FLAGS := -p no:anyio -m "not slow" --numprocesses 2 --dist loadfile -W "ignore:scipy.optimize:DeprecationWarning"
SESSION_TESTS := $(patsubst %,tests/%.py,kaggle/test_session data/test_folds data/test_batches training/test_setup \
	evaluation/test_predictions ensembling/test_blending core/test_files)

test-kaggle: .venv-kaggle/.ready  ## what a session does, under the versions of Kaggle's image of today
	.venv-kaggle/bin/python -m pytest $(SESSION_FLAGS) $(SESSION_TESTS)

test-kaggle-next: .venv-kaggle-next/.ready  ## the same under the versions that its base image has moved on to
	.venv-kaggle-next/bin/python -m pytest $(SESSION_FLAGS) $(SESSION_TESTS)

.venv-%/.ready: %-versions.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $*-versions.txt \
		'setuptools>=70.1,<82' 'pytest>=8' 'pytest-xdist>=3.5' 'hypothesis>=6.100' || \
		{ echo "make: pip could not install $*-versions.txt (its error is above; 8 GB of disk are needed)"; exit 1; }
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

docs: $(READY)  ## the documentation as a site, with the API reference, in build/docs
	$(BIN)/python -W error docs/make_site.py build/docs

dist: $(READY)  ## source distribution and wheel, in dist
	$(BIN)/python -m build

bench: $(READY)  ## the benchmarks, some thirty minutes, and docs/performance.md from them
	for one in input_path augmentation packing training batch_norm inference classify whole tables startup scaling page; do \
		$(BIN)/python -m benchmarks.$$one || exit 1; done

bench-gpu: $(READY)  ## tests and benchmarks that need a GPU, eight minutes, and the page
	PYTHON=$(CURDIR)/$(BIN)/python bash benchmarks/on_a_gpu.sh
	$(BIN)/python -m benchmarks.page

lint: $(READY)  ## style, and types for each system
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	for system in linux darwin win32; do $(BIN)/mypy --platform $$system || exit 1; done

format: $(READY)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments and what the demo made
	rm -rf $(VENV) .venv-kaggle .venv-kaggle-next demo-output build dist mutants .pytest_cache .mypy_cache .ruff_cache
