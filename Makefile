# Both `make demo` and `make test` set up all they need from a bare Python 3.11 with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types bench clean

$(VENV)/.stamp-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

demo: $(VENV)/.stamp-demo
	$(BIN)/yalm demo

test: $(VENV)/.stamp-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# DeepSpeed calls ninja, which pip puts beside python.
test-slow: $(VENV)/.stamp-test $(VENV)/.stamp-cluster $(VENV)/.stamp-deepspeed $(VENV)/.stamp-bench
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev $(VENV)/.stamp-test
	$(BIN)/mypy

bench: $(VENV)/.stamp-bench
	$(BIN)/python bench/train_vs_transformers.py --quick
	$(BIN)/python bench/generate_vs_transformers.py --quick
	$(BIN)/python bench/convert.py --quick

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
