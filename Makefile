# One virtual environment in .venv; `make demo` and `make test` make it themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench parity

demo: .venv/run
	$(BIN)/python run.py

test: .venv/test
	$(BIN)/python -m pytest

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

parity: .venv/test
	$(BIN)/python -m pytest -n 0 tests/test_golden*.py tests/test_clip.py tests/test_attention_control.py \
	    tests/test_text_to_image.py tests/test_flow_model.py --parity docs/parity.md

bench: .venv/test
	$(BIN)/python scripts/benchmark.py

.venv/run: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'cyclediff needs Python 3.11 or newer: make PYTHON=python3.11 demo')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable .
	@touch $@

.venv/test: .venv/run
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable '.[test]'
	@touch $@
