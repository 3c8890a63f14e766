# Every target makes the virtual environment it needs; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint bench test-sglang clean

demo: $(VENV)/.demo
	$(BIN)/sglang-cached demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

# The end-to-end tests against a real server: make test-sglang URL=http://localhost:30000
# START='python -m sglang.launch_server --model-path M --port {port}' adds those that start others.
test-sglang: $(VENV)/.dev
	@test -n "$(URL)" || { echo "usage: make test-sglang URL=http://localhost:30000"; exit 2; }
	SGLANG_URL=$(URL) SGLANG_START="$(START)" $(BIN)/python -m pytest -q \
	  tests/e2e/test_sglang.py tests/e2e/test_sglang_model.py tests/e2e/test_clients.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# pip 25.1 and newer read dependency groups.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[openai]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable . --group lint
	touch $@ $(VENV)/.demo
