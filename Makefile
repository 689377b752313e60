# One environment for everything: built once, again only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help setup demo test test-slow test-kaggle docs dist bench bench-gpu lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): setup.py
	rm -f $(READY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

setup: $(READY)  ## build the environment in .venv

demo: $(READY)  ## the whole way on generated patches: a checked submission and a report
	$(BIN)/claris demo --out demo-output

test: $(READY)  ## the fast tests, two files at a time
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(READY)  ## the long tests alone
	$(BIN)/python -m pytest -m slow

test-kaggle:  ## the fast tests under the versions of Kaggle's image, in an environment of its own
	test -e .venv-kaggle/.ready || { $(PYTHON) -m venv .venv-kaggle && .venv-kaggle/bin/python -m pip install --quiet \
		--disable-pip-version-check --constraint kaggle-versions.txt --editable '.[dev]' && touch .venv-kaggle/.ready; }
	.venv-kaggle/bin/python -m pytest -m "not slow"

docs: $(READY)  ## the API reference, from the docstrings, in build/docs
	$(BIN)/python -W error docs/make_api.py build/docs

dist: $(READY)  ## source distribution and wheel, in dist
	$(BIN)/python -m build

bench: $(READY)  ## the benchmarks, some thirty minutes, and docs/performance.md from them
	for one in input_path packing training batch_norm inference whole tables startup scaling page; do \
		$(BIN)/python -m benchmarks.$$one || exit 1; done

bench-gpu: $(READY)  ## tests and benchmarks that need a GPU, eight minutes, and the page
	PYTHON=$(CURDIR)/$(BIN)/python bash benchmarks/on_a_gpu.sh
	$(BIN)/python -m benchmarks.page

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments and what the demo made
	rm -rf $(VENV) .venv-kaggle demo-output build dist .pytest_cache .mypy_cache .ruff_cache
