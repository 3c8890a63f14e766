# Every target makes the virtual environment it needs; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# uv makes the environments where it is there, on the path or in another environment, and is
# installed in one where it is not.
UV ?= $(or $(shell command -v uv 2>/dev/null),$(abspath $(firstword $(wildcard .venv*/bin/uv))))
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# UVFLAGS chooses other releases of what is needed, as --resolution lowest-direct does.
INSTALL = $(or $(UV),$(BIN)/uv) pip install --quiet --python $(BIN)/python $(UVFLAGS)
PYTEST = $(BIN)/python -m pytest -q
# Hundreds of processes start here: what each of them imports is compiled once.
unexport PYTHONDONTWRITEBYTECODE
SOURCES = pyproject.toml README.md $(shell find sglang_cached_addon -type f -not -name '*.pyc')

.PHONY: demo test clients screenshots cover lint bench test-sglang clean

demo: $(VENV)/.demo
	$(BIN)/sglang-cached demo

test: $(VENV)/.wheel
	$(PYTEST) -n 3 --dist worksteal $(ARGS)

# What npm and PyPI have for single tests, which are skipped where it is not there: axe-core looks for
# barriers in the pages; OpenAI's and Anthropic's clients for Node, and litellm, are tried.
clients: node_modules/.clients .venv-litellm/.clients
node_modules/.clients: Makefile
	npm install --no-save --no-package-lock --no-audit --no-fund --silent \
	  axe-core@4.11 openai@7.57 @anthropic-ai/sdk@1.14
	touch $@
.venv-litellm/.clients: Makefile | $(VENV)/.dev
	rm -rf $(@D) && $(BIN)/python -m venv --without-pip $(@D)
	$(or $(UV),$(BIN)/uv) pip install --quiet --python $(@D)/bin/python litellm==1.110.2
	touch $@

# The pictures in docs/images.
screenshots: $(VENV)/.dev
	$(BIN)/python -m tests.screenshots $(ARGS)

# Line and branch coverage, that of the processes which tests start included.
cover: $(VENV)/.wheel
	$(PYTEST) -n 2 --dist worksteal --cov --cov-report term $(ARGS)

# The end-to-end tests against a real server: make test-sglang URL=http://localhost:30000
# START='python -m sglang.launch_server --model-path M --port {port}' adds those that start others.
test-sglang: $(VENV)/.wheel
	@test -n "$(URL)" || { echo "usage: make test-sglang URL=http://localhost:30000"; exit 2; }
	SGLANG_URL=$(URL) SGLANG_START="$(START)" $(PYTEST) \
	  tests/e2e/test_sglang.py tests/e2e/test_sglang_model.py tests/e2e/test_clients.py \
	  tests/e2e/test_anthropic.py tests/e2e/test_claude_code.py tests/e2e/test_codex.py \
	  tests/e2e/test_litellm.py tests/e2e/test_openai.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .venv-litellm node_modules build dist .pytest_cache .mypy_cache .ruff_cache .coverage*

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(if $(UV),$(UV) venv --quiet --python $(PYTHON),$(PYTHON) -m venv) $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(if $(UV),$(INSTALL),$(PIP)) --editable '.[openai]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(if $(UV),,$(PIP) uv)
	$(INSTALL) --editable . --group lint
	touch $@ $(VENV)/.demo

# What tests start is the wheel, built from the sdist: once for all environments, and anew when a
# source changes.
dist/.wheel: $(SOURCES) | $(VENV)/.dev
	rm -rf dist && mkdir dist
	$(BIN)/pyproject-build --no-isolation --outdir dist . >dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	touch $@

$(VENV)/.wheel: $(VENV)/.dev dist/.wheel
	$(INSTALL) --no-deps --reinstall dist/*.whl
	touch $@
