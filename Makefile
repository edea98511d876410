# Everything is built into the checkout: .venv (Python) and target (Rust).
# `make` lists the targets; the text after ## is what it prints.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(BIN):$(PATH)

RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)
# Debian packages of the larger tests (tests/means.py names the tools); g++ is for libFuzzer.
SYSTEM_DEPS := e2fsprogs qemu-utils g++ fio nbdkit nbdkit-plugin-python libnbd-bin \
	python3-libnbd openssl fuse3 mount util-linux qemu-system-x86 busybox-static kmod \
	iproute2 systemd udev bubblewrap fuse2fs user-mode-linux mandoc librbd1 ceph-common \
	ceph-mon ceph-osd

say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: help demo test test-long kernel check bench soak asan loom fuzz man build system-deps clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## Real I/O on a file system image, through the whole stack [ARGS="--size 4G --packed"]
	@vduse demo $(ARGS)

test: build ## All tests; with ARGS="-k name" only pytest, with these arguments
ifeq ($(strip $(ARGS)),)
	$(call say,cargo test)
	@cargo test --workspace --quiet
endif
	$(call say,pytest)
	@pytest $(ARGS)

test-long: build ## The tests that take minutes each [ARGS="-k name"]
	@pytest -m long $(ARGS)

kernel: build ## A command as root on another kernel, in QEMU [ARGS="--kernel 6.12 -- COMMAND"]
	@python -m tests.kernel $(ARGS)

check: build ## ruff, mypy --strict, stub test, rustfmt, clippy; nothing is changed
	$(call say,ruff)
	@ruff check
	@ruff format --check
	$(call say,mypy)
	@mypy python
	@python -m mypy.stubtest vduse._native
	$(call say,rustfmt and clippy)
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings

bench: build ## The benchmarks, as a table and JSON [ARGS=...]
	@python benches/run.py $(ARGS)

soak: build ## Random load and troubles; memory, fds and threads stay flat [ARGS="SECONDS"], 3600
	@python -m tests.soak $(ARGS)

asan: ## Ring and memory crates' tests under AddressSanitizer
	@tools/asan $(ARGS)

loom: ## What threads share, under loom's model checker
	@tools/loom $(ARGS)

fuzz: ## The fuzz targets, from their corpora [ARGS="SECONDS TARGET..."]
	@tools/fuzz $(ARGS)

man: build ## docs/reference.md and the man pages anew, from the command table
	@python -m tools.manual

build: $(VENV)/.native ## The native module and the `vduse` command, into .venv

system-deps: ## Install the Debian packages that larger tests use (root or sudo)
	@tools/system-deps $(SYSTEM_DEPS)

clean: ## Remove what was built here
	rm -rf $(VENV) target .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find python -name '*.so' -delete
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.deps: requirements-dev.txt
	@PYTHON="$(PYTHON)" tools/preflight
	$(call say,Python environment in $(VENV))
	@"$(PYTHON)" -m venv $(VENV)
	@python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.native: $(VENV)/.deps $(RUST)
	@PYTHON="$(PYTHON)" tools/preflight
	$(call say,native module (release))
	@PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 maturin develop --release
	@touch $@
