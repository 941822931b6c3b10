# Every target makes the virtual environment if there is none. Pass PIP_ARGS to choose where packages come from, e.g.
#   make quickstart PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# which takes the CPU build of torch, hundreds of megabytes instead of gigabytes.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: quickstart test engine lint format types docs site benchmarks real-model clean

quickstart: $(VENV)/.installed
	$(BIN)/ballast quickstart

test: $(VENV)/.developing
	$(BIN)/python -m pytest -q -n auto

# A small real server: `transformers serve`.
engine: $(VENV)/.developing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt 'transformers[serving]'
	BALLAST_TRANSFORMERS_SERVE="$(BIN)/transformers serve" $(BIN)/python -m pytest -q -m engine tests/test_engines_real.py

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: lint

format: $(VENV)/.developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/python scripts/objective_pages.py
	$(BIN)/python scripts/recipe_page.py

# The pages read the sources; ballast itself need not be installed.
site:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.30' 'ruff>=0.14'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

benchmarks: $(VENV)/.installed
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/memory.py

real-model: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[gguf]'
	$(BIN)/python scripts/smollm2.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
