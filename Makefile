# `make` lists the targets. Everything built is kept outside the clone, in ROLEGATE_CACHE.

export ROLEGATE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rolegate
export CARGO_TARGET_DIR ?= $(ROLEGATE_CACHE)/target
# Debian keeps nft and iptables where ordinary users' PATH doesn't look.
export PATH := $(PATH):/usr/sbin:/sbin
# The binary under test.
export ROLEGATE_BINARY ?= $(CARGO_TARGET_DIR)/debug/rolegate

# Requirements of tests that are not part of the product.
TEST_FEATURES := --features rolegate-rego/conformance

# Cargo unifies the features of the packages that it builds together. All development builds select the
# whole workspace with its test features, so that demo, tests and e2e share one build of each dependency.
# `--examples` enables the test features without building tests.
# Builds are --locked, so that no build changes the versions of dependencies.
BINARIES := build --locked --workspace $(TEST_FEATURES) --bins --examples

# The branch or commit that `make mutants` compares with.
BASE ?=

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 30

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-nodes test-slow conformance e2e lint fmt bench scale fuzz mutants

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install and build once what the tests and checks need (others call it)
	@hack/setup build test lint

build: ## Build the rolegate binary (development profile)
	@hack/setup build
	cargo $(BINARIES)

demo: build ## See the agent at work in network namespaces (as root) or on loopback, without AWS or Kubernetes
	$(ROLEGATE_BINARY) demo

test: ## Run all tests: units, a real API server, network namespaces, SDKs, short fuzzing (as root)
	@hack/setup build test
	cargo $(BINARIES)
	@hack/test

test-nodes: ## Run the tests on a cluster whose nodes run pods: containerd, kubelets, DaemonSets (as root)
	@hack/setup build test
	cargo $(BINARIES)
	cargo test --locked --workspace $(TEST_FEATURES) --test nodes

test-slow: ## Run what waits for minutes, such as a node that Kubernetes gives up (as root)
	@hack/setup build test
	cargo $(BINARIES)
	cargo test --locked --workspace $(TEST_FEATURES) --test nodes -- --ignored

conformance: ## Ask OPA's own cases and compare with OPA's answers (CONFORMANCE=write: accept as it is)
	@hack/opa-cases >/dev/null
	ROLEGATE_CONFORMANCE=$(CONFORMANCE) cargo test --locked --workspace $(TEST_FEATURES) --test conformance -- --nocapture

e2e: ## Run one integration test by its exact name: make e2e T=sdk_in_pod_gets_its_role
	@hack/setup build test
	cargo $(BINARIES)
	@hack/e2e '$(T)'

lint: ## Check format, lints, spelling, licences, banned dependencies, shell scripts and the house rules
	@hack/setup build lint
	cargo fmt --all --check
	cargo clippy --locked --workspace $(TEST_FEATURES) --all-targets -- -D warnings
	@# The targets above are those of `make test`.
	cargo clippy --locked --workspace $(TEST_FEATURES) --test nodes -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace $(TEST_FEATURES) --no-deps --document-private-items
	@hack/lint

fmt: ## Format all code
	cargo fmt --all
	gofmt -w tests/cluster/*.go tests/promlint/*.go tests/promtool/promql/*.go crates/rego/tests/conformance/opa/*.go

bench: ## Measure against the numbers promised in docs/benchmarks.md; JSON in ROLEGATE_CACHE/bench.json
	@hack/setup build
	cargo build --locked --release -p rolegate -p rolegate-bench
	$(CARGO_TARGET_DIR)/release/rolegate-bench --json $(ROLEGATE_CACHE)/bench.json

scale: ## Run 1,000 agents, 50,000 pods and 3 brokers, one of which is killed; JSON in ROLEGATE_CACHE/scale.json
	@hack/setup build
	cargo build --locked --release -p rolegate -p rolegate-bench
	$(CARGO_TARGET_DIR)/release/rolegate-bench --json $(ROLEGATE_CACHE)/scale.json scale

fuzz: ## Fuzz each target for FUZZ_SECONDS (30)
	@hack/setup build fuzz
	@hack/fuzz $(FUZZ_SECONDS)

mutants: ## Mutate the changed code and report mutants that no test catches: make mutants BASE=origin/main
	@hack/setup build mutants
	@hack/mutants $(BASE)
