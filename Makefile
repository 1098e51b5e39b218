# hvforge. `make` lists the targets; `make run` is where to begin.

PYTHON ?= python3
IMAGE  ?= images/minimal.toml
JOBS   ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# For the tests and for `make smoke`: emulators, their firmware, GNU as, GRUB.
DEBIAN := bochs bochs-term bochsbios vgabios qemu-system-x86 seabios binutils grub-pc-bin grub-common xorriso mtools

.DEFAULT_GOAL := help
.PHONY: help run test smoke image bench clean distclean debian

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP) ## build IMAGE, verify it in the harness and show what happened; needs nothing but Python
	@$(BIN)/hvforge verify $(IMAGE)

test: debian $(STAMP) ## install what the tests need, then ruff, mypy --strict and pytest
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(JOBS)

smoke: debian $(STAMP) ## boot IMAGE in Bochs and in QEMU, from every format
	@$(BIN)/python -m hvtests.smoke $(IMAGE)

image: $(STAMP) ## build IMAGE into build/
	@$(BIN)/hvforge build $(IMAGE)

bench: debian $(STAMP) ## print one JSON line per figure
	@$(BIN)/python -m hvtests.bench

clean: ## remove what was built, and caches
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find generator hvtests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environment too
	rm -rf $(VENV)

debian:
	@.ci/debian $(DEBIAN)

# Installed once, and again when pyproject.toml changes; the package itself is used from this directory.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || .ci/debian python3
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hvforge needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/debian python3-venv
	@$(PYTHON) -m venv $(VENV)
	@echo "installing hvforge into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
