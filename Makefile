# The first use makes .venv and installs qlab into it, once for each pyproject.toml; later uses
# find it there. Everything works without make too: python -m pip install -e '.[lab,dev]', then
# python -m qlab demo.
#
#   make demo ARGS="--model tiny"        arguments are handed on
#   make test ARGS="-k rtn -n 0"         or ARGS="-m slow", ARGS="-m peer"

VENV   ?= .venv
PYTHON ?= python3
ARGS   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help install demo test lab figures tables notebooks format check clean-cache

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install qlab with the lab and the tests

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "qlab needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Name another one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,dev]'
	@rm -f $(VENV)/.installed-* && touch $@

demo: $(STAMP)  ## load a real model, quantize it, print what was lost (ARGS="--model tiny")
	$(BIN)/python -m qlab demo $(ARGS)

test: $(STAMP)  ## the tests, on two processes (ARGS="-m slow", ARGS="-k rtn")
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/python -m qlab lab $(ARGS)

figures: $(STAMP)  ## write the figures of figures/
	$(BIN)/python figures/make_figures.py $(ARGS)

tables: $(STAMP)  ## measure the tables of benchmarks/results (resumable)
	$(BIN)/python benchmarks/make_tables.py $(ARGS)

notebooks: $(STAMP)  ## execute the notebooks and keep their pictures
	$(BIN)/python notebooks/execute.py $(ARGS)

format: $(STAMP)  ## sort imports, fix what ruff can fix, lay the code out
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean-cache: $(STAMP)  ## delete the cache folder: downloads, compiled programs, statistics
	@$(BIN)/python -c 'import shutil; from qlab.cache import cache_dir; f = cache_dir(); shutil.rmtree(f); print("deleted", f)'
