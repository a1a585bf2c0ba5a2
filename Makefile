# One entry point; CI calls the same targets. As root: tests and demo mount file systems.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build demo test conformance lint bench soak coldstart fuzz install-deps corpus

FUZZ_SECONDS ?= 60
# Such as 'api node_files'; all if empty
FUZZ_TARGETS ?=
# The version of lazo that `make soak` upgrades from and to: a commit
SOAK_BEFORE ?= HEAD~1
# `cargo test` arguments, such as TEST_ARGS='--test e2e lazy'
TEST_ARGS ?= --workspace
# Such as '--images nginx,node --subjects overlayfs,lazo,stargz --rounds 1'
COLDSTART_ARGS ?=
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

build: ## the release binary, target/release/lazo
	@scripts/install-deps --build
	cargo build --release --locked

demo: build ## convert, mount and run an image of this machine's own files, against a full pull
	target/release/lazo demo

test: lint corpus ## everything: format, lints, unit and end-to-end tests
	cargo test --locked $(TEST_ARGS)

lint: install-deps ## rustfmt and clippy, warnings are errors; docs/DEVELOPMENT.md; cargo-deny where it is installed
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/check-docs
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check bans licenses sources; fi

conformance: ## containerd's own conformance suite for snapshotters; Debian's golang-go and golang-github-containerd-containerd-dev
	cargo build --locked
	tests/conformance/run target/debug/lazo

bench: install-deps ## the figures of docs/BENCHMARKS.md, measured on this machine, on an image that is checked first
	scripts/corpus large >/dev/null
	cargo test --locked --release --test e2e -- --ignored --skip soak_
	python3 benches/run.py

soak: corpus ## an hour of kills, signals, restarts and upgrades to and from SOAK_BEFORE in random orders, with and without systemd
	before=$$(scripts/build-commit $(SOAK_BEFORE)) && \
		LAZO_TEST_OTHER=$$before cargo test --locked --test e2e -- --ignored --nocapture --test-threads=1 soak_

coldstart: install-deps ## how soon containers start on an empty node, beside full pulls; COLDSTART_ARGS: see benches/coldstart/run.py
	python3 benches/coldstart/run.py $(COLDSTART_ARGS)

fuzz: ## every fuzz target, or those of FUZZ_TARGETS, for FUZZ_SECONDS (60) each
	scripts/install-deps --fuzz
	cd fuzz && cargo run --quiet --package lazo-fuzz-seeds
	@cd fuzz && for target in $(or $(FUZZ_TARGETS),$$(cargo fuzz list)); do \
		echo "== $$target: $(FUZZ_SECONDS) s"; \
		mkdir -p "corpus/$$target"; \
		seeds=$$(ls -d "seeds/$$target" 2>/dev/null); \
		dictionary=$$(ls "dictionaries/$$target.dict" 2>/dev/null); \
		RUSTC_BOOTSTRAP=1 cargo fuzz run "$$target" "corpus/$$target" $$seeds -- $${dictionary:+-dict=$$dictionary} \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=10 || exit 1; \
	done

corpus: install-deps ## the images that the tests convert, and a root with systemd, under target/corpus
	scripts/corpus small hostile debian >/dev/null
	scripts/systemd-root >/dev/null

install-deps: ## packages and tools, on Debian 12
	@scripts/install-deps
