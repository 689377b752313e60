# All targets use one environment. It is built again only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export NO_ALBUMENTATIONS_UPDATE := 1
# Keep compiled modules: the tests start about a hundred processes, and pytest rewrites the asserts of each module
# that is not compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-slow test-kaggle test-kaggle-next coverage mutants docs dist bench bench-gpu lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): setup.py claris_kaggle/version.py
	rm -f $(READY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

setup: $(READY)  ## build the environment in .venv

demo: $(READY)  ## run the whole pipeline on generated patches, to a checked submission and a report
	$(BIN)/claris demo --out demo-output

test: $(READY)  ## run the fast tests in two processes
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-slow: $(READY)  ## run the slow tests in two processes
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist worksteal

# Processes that a test starts are not counted.
coverage: $(READY)  ## measure the coverage of the fast tests; fails below 95 %
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal --cov claris_kaggle \
		--cov-report term-missing:skip-covered --cov-fail-under 95
	$(BIN)/coverage report --include "claris_kaggle/evaluation/*,claris_kaggle/ensembling/*" --fail-under 99

# The shared folders of the tests are built once, before the first mutation, and kept for all mutations.
mutants: $(READY)  ## mutate the code of metrics and submissions, and list what no test notices; over an hour
	CLARIS_TESTS_SHARED=$(CURDIR)/build/mutants OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

# The tests of a Kaggle session, with the versions of its image; at most 5 minutes. The other tests run only in .venv:
# they need kaggle>=2.2.5, which the image does not have. The library is installed without its dependencies, because
# the image's kaggle is older than setup.py requires, and no session imports it. SciPy 1.16 in the image warns about an
# option that its scikit-learn 1.6.1 sets, and its plugin of anyio is too old for this pytest.
SESSION_FLAGS := -p no:anyio -m "not slow" --numprocesses 2 --dist loadfile -W "ignore:scipy.optimize:DeprecationWarning"
SESSION_TESTS := $(patsubst %,tests/%.py,kaggle/test_session data/test_folds data/test_batches training/test_setup \
	evaluation/test_predictions ensembling/test_blending core/test_files)

test-kaggle: .venv-kaggle/.ready  ## run the tests of a session with the versions of Kaggle's current image
	.venv-kaggle/bin/python -m pytest $(SESSION_FLAGS) $(SESSION_TESTS)

test-kaggle-next: .venv-kaggle-next/.ready  ## the same with the versions of Kaggle's next image
	.venv-kaggle-next/bin/python -m pytest $(SESSION_FLAGS) $(SESSION_TESTS)

.venv-%/.ready: %-versions.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $*-versions.txt \
		'setuptools>=70.1,<82' 'pytest>=8' 'pytest-xdist>=3.5' 'hypothesis>=6.100' || \
		{ echo "make: pip could not install $*-versions.txt (its error is above; 8 GB of disk are needed)"; exit 1; }
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

docs: $(READY)  ## build the documentation as a site, with the API reference, in build/docs
	$(BIN)/python -W error docs/make_site.py build/docs

dist: $(READY)  ## build the source distribution and the wheel in dist
	$(BIN)/python -m build

bench: $(READY)  ## run the benchmarks and write docs/performance.md; about thirty minutes
	for one in input_path augmentation packing training batch_norm inference classify whole tables startup scaling page; do \
		$(BIN)/python -m benchmarks.$$one || exit 1; done

bench-gpu: $(READY)  ## run the tests and benchmarks that need a GPU, and write the page; eight minutes
	PYTHON=$(CURDIR)/$(BIN)/python bash benchmarks/on_a_gpu.sh
	$(BIN)/python -m benchmarks.page

lint: $(READY)  ## check the style, and the types on each system
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	for system in linux darwin win32; do $(BIN)/mypy --platform $$system || exit 1; done

format: $(READY)  ## fix the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments and all build outputs
	rm -rf $(VENV) .venv-kaggle .venv-kaggle-next demo-output build dist mutants .pytest_cache .mypy_cache .ruff_cache
