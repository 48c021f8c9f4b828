# From nothing to the main job, and from nothing to a green test run: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint docs bench clean

# torch and torchvision come in one resolution, so that their builds fit each other.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/arelu-tl demo

# Two files at a time, one thread each: two that wait for each other's threads take longer than one after the other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, which opens from its folder without a network: site/index.html.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED)
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) runs demo-data site .pytest_cache .mypy_cache .ruff_cache .hypothesis
