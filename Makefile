# One command per job; `make` alone lists them.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
TORCH_INDEX ?=
PORT   ?= 8000
ARGS   ?=

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP   := $(PY) -m pip --disable-pip-version-check install --quiet

# Tools keep caches and settings in the home folder. Where no file can be made there, _build/home takes its place.
IN_HOME := { test -d "$$HOME" && file=$$(mktemp "$$HOME/.tvf-XXXXXX") && rm "$$file"; } 2>/dev/null || \
  { mkdir -p _build/home && export HOME="$$PWD/_build/home"; };

# The caller's settings of these two would change what a notebook prints or draws.
unexport MPLBACKEND PYTHONWARNINGS

.DEFAULT_GOAL := help
.PHONY: help env lint data book test notebooks train results serve clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=$(PYTHON)  TORCH='$(TORCH)'  TORCH_INDEX=$(TORCH_INDEX)  PORT=$(PORT)  ARGS=$(ARGS) (for book/build.py)"

env: $(STAMP)  ## make .venv with everything the book and the tests need

$(STAMP): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "Error: '$(PYTHON)' is not Python 3.11, 3.12 or 3.13; name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Error: '$(PYTHON)' has no venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test -x $(PY) || { echo "Creating $(VENV)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing $(TORCH) (a large download the first time)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') '$(TORCH)'
	@echo "Installing tvf_core with its book and test tools"
	@$(PIP) -e '.[book,test]'
	@touch $@

lint: env  ## check style and format of the Python files and the notebooks with ruff; changes nothing
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

data: env  ## fetch and prepare 20 real anatomies (32 MB) and 102 real faces (95 MB); the book and the tests use what is there
	@$(PY) -m data_download anatomies
	@$(PY) -m data_download london

book: env  ## execute the notebooks and build the book into _build/html
	@$(IN_HOME) $(PY) book/build.py $(ARGS)

test: env  ## run the unit tests, then compare every notebook with its stored outputs
	@$(IN_HOME) $(PY) -m pytest
	@rm -rf _build/test-runs  # every notebook must compute its results again
	@$(IN_HOME) TVF_RUNS="$$PWD/_build/test-runs" $(PY) -m pytest --nbval --nbval-current-env notebooks

notebooks: env  ## execute the notebooks and store their outputs (maintainer)
	@$(IN_HOME) $(PY) book/build.py --store $(ARGS)

train: env  ## retrain the shipped weights (maintainer)
	@$(IN_HOME) $(VENV)/bin/tvf train-all

results: env  ## measure again what older code measured: evaluations and benchmarks (maintainer)
	@$(IN_HOME) $(VENV)/bin/tvf evaluate-all
	@$(IN_HOME) $(VENV)/bin/tvf bench-all

serve:  ## show the built book on http://127.0.0.1:8000
	@test -f _build/html/index.html || { echo "Error: no book yet; run 'make book' first" >&2; exit 1; }
	@echo "http://127.0.0.1:$(PORT)  (Ctrl-C stops it)"
	@"$(PYTHON)" -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean:  ## remove _build, runs and caches; keeps .venv
	rm -rf _build runs .pytest_cache .ruff_cache .hypothesis
	find . -name $(VENV) -prune -o -name .git -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
