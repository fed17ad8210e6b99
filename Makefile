# Everything runs from a virtual environment that `make setup` makes; nothing else needs to be installed.
# The first Python on the path that Winnow runs on.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-fast test-gpu check check-docs check-wheel format bench docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Winnow needs Python 3.11 or 3.12 on the path (or make PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,faces,ocr]'
	@touch $(STAMP)

# The whole way on a miniature web made on the spot: URLs in, trained model out.
demo: setup
	$(BIN)/winnow demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# All other targets leave GPUs alone: the tests compare with what a CPU gives.
test-gpu: setup
	WINNOW_TEST_GPU=1 $(BIN)/python -m pytest -m gpu

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) check-docs check-wheel

# The generated parts of docs/ are those that the code gives now.
check-docs: setup
	$(BIN)/python -m docs.generate --check

# The wheel builds, and holds what it must: installed in a folder of its own, its command answers without the source tree.
check-wheel: setup
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel && PYTHONPATH=site ../../$(BIN)/python -c \
	  'import pipelines.recipe as r, os; assert os.path.abspath("site") in r.__file__, r.__file__; r.load_recipe("starter")'

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks

docs: setup
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
