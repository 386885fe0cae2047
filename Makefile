# `make` lists what there is. Every target does its own set-up.
.DEFAULT_GOAL := help
.PHONY: help demo demo-repair chaos test lint bench bench-report fuzz fmt setup
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## this list
	@echo "Longboat: a multi-group Raft engine. The first build compiles RocksDB: 10 to 20 minutes on 2 cores, once."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## three hosts, 64 groups, hosts killed under load: shows that nothing acknowledged is lost
	@scripts/cargo.sh build --release -p longboat-examples
	@cargo run --quiet --release -p longboat-examples --bin demo

demo-repair: setup ## two of three hosts are lost: their groups go on from exported snapshots, and nothing of before is lost
	@scripts/cargo.sh build --release -p longboat-examples
	@cargo run --quiet --release -p longboat-examples --bin demo -- --repair --groups 16

chaos: setup ## processes killed, stopped, cut off and without room for MINUTES (default 10), and clients' histories checked
	@scripts/cargo.sh build --release -p longboat-examples
	@cargo run --quiet --release -p longboat-examples --bin chaos -- --minutes $(or $(MINUTES),10)

test: ## everything that CI checks: format, lints, documentation, simulator seeds, all tests
	@.ci/run

lint: setup ## clippy with warnings as errors, and the format
	@cargo fmt --all --check
	@scripts/clippy.sh --release --workspace --all-targets

bench: setup ## what this machine can do, then every scenario of load: under six minutes
	@scripts/cargo.sh build --release -p longboat-bench
	@cargo run --quiet --release -p longboat-bench -- all

bench-report: setup ## the same, written to docs/bench with a plot
	@scripts/cargo.sh build --release -p longboat-bench
	@cargo run --quiet --release -p longboat-bench -- all --out docs/bench

fuzz: ## fuzz targets, each for SECONDS (default 60): whatever bytes bring, no assertion fails
	@scripts/fuzz.sh all $(or $(SECONDS),60)

fmt: ## formats the code
	@cargo fmt --all

setup:
	@scripts/setup.sh
