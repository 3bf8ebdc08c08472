# Each target sets up what it needs, from nothing but Python >= 3.11.
#
# On Linux, PyPI's torch is the CUDA build. For the CPU build instead:
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
OLDEST := $(VENV)-oldest
# Compiled is what is imported, and when it is: not the tens of thousands of other modules.
INSTALLER ?= $(BIN)/python -m pip install --disable-pip-version-check --no-compile
PIP_INSTALL = $(INSTALLER) --quiet $(PIP_FLAGS) -c constraints.txt

# With it set, every process would compile torch and transformers anew: five seconds.
export PYTHONDONTWRITEBYTECODE =

# Fixtures of a file are made once, by the worker that runs all of it.
BY_FILE = --dist loadfile --no-loadscope-reorder

.PHONY: install demo quick test test-oldest lint format bench docs rooms wheel notebooks clean

install: $(VENV)/.installed
	@echo "installed: run $(BIN)/stat-prune --help"

demo: $(VENV)/.installed-demo
	$(BIN)/stat-prune demo --output demo-output

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(BY_FILE) $(PYTEST_FLAGS)

# Under two minutes on two cores.
quick: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q tests/linalg tests/choosing tests/test_layout.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q --families Bert tests/contract/test_identity.py \
		tests/contract/test_reload.py tests/contract/test_report.py

# The contract of a few families with the oldest transformers that pyproject.toml allows.
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --families Bert,DistilBert,Llama,Qwen3 \
		tests/contract/test_identity.py tests/contract/test_models.py tests/contract/test_report.py \
		tests/contract/test_reload.py $(BY_FILE) $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench
	benchmarks/small.sh $(BIN)/python

# pdoc documents those of the package's names that are imported already.
docs: $(VENV)/.installed-docs
	$(BIN)/python -c "from stat_prune import *; from pdoc.__main__ import cli; cli()" \
		--docformat numpy --output-directory build/docs stat_prune

# The picture in docs/architecture.md, from the imports.
rooms: $(VENV)/.installed-demo
	$(BIN)/python docs/draw_rooms.py docs/figures/rooms.svg

# The wheel alone, in an environment of its own, away from the sources.
wheel: $(VENV)/.created
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --wheel-dir dist .
	$(PYTHON) -m venv --clear build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt \
		"stat-prune[demo] @ file://$$(ls -t $(CURDIR)/dist/stat_prune-*.whl | head -1)"
	cd build/wheel && bin/stat-prune demo --output demo-output

# Runs them all from top to bottom; those with fresh outputs are then in build/notebooks.
notebooks: $(VENV)/.installed-notebooks
	HF_HUB_OFFLINE=1 $(BIN)/jupyter nbconvert --to notebook --execute \
		--output-dir build/notebooks notebooks/*.ipynb

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info demo-output

# The stamps make a second call quick; a changed dependency list installs again.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	touch $@

# What it brings of the others is not asked for again.
$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-docs

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[$*]"
	touch $@

# All but transformers, and what it brings of its own, is that of the other environment.
$(OLDEST)/.installed: $(VENV)/.installed-test
	$(BIN)/python -m venv --clear $(OLDEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(OLDEST)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_FLAGS) \
		"transformers==$$(sed -n 's/^ *"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)"
	touch $@
