# make up      set up and run the sample cluster with the embedded backend    make test    everything that must pass to land
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install up test lint bench wheel peers test-peers soak soak-faults clean
install: $(STAMP)

$(STAMP): pyproject.toml setup.py $(wildcard src/lockgate/wire/*.p*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' 'setuptools>=77' 'Cython>=3.1'
	$(BIN)/python -m pip install --quiet --group dev --editable '.[backend]' --no-build-isolation
	touch $@

up: install
	$(BIN)/lockgate up

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install lint
	sh tests/install-debian.sh
	$(BIN)/python -m pytest

# Real peers, built once from Go modules into a cache outside the tree (LOCKGATE_PEERS); says why where one cannot be.
peers: install
	nice -n 15 $(BIN)/python tests/peers/build_peers.py

test-peers: install peers
	$(BIN)/python -m pytest -m peers tests/peers

bench: install peers
	$(BIN)/python bench/logs.py

# Thousands of random histories of a container's log; then the kernels fuzzed under the address and undefined-behaviour sanitizers, against
# their uncompiled forms; the doors with new examples; then every fault test in its long form (docs/soak.md): hours, and 25 GB of disk.
# `make soak-faults PLAYS='kills power'` runs some of these.
SOAK_SECONDS ?= 120
SOAK_HISTORIES ?= 10000
soak: install
	LOCKGATE_HISTORIES=$(SOAK_HISTORIES) $(BIN)/python -m pytest -q -s tests/unit/tail/test_history.py
	LOCKGATE_REQUIRE_KERNELS=1 LOCKGATE_KERNEL_CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined' \
		$(BIN)/python setup.py -q build_ext --build-lib build/soak --build-temp build/soak
	LD_PRELOAD=$$(cc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		$(BIN)/python tests/soak/kernels.py build/soak $(SOAK_SECONDS)
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -q tests/fuzz
	$(BIN)/python tests/soak/faults.py

PLAYS ?=
soak-faults: install
	sh tests/install-debian.sh
	$(BIN)/python tests/soak/faults.py $(PLAYS)

wheel: install
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist .cache
