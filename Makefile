# sandpail: what people run. Each target says what it installs and does.

CARGO ?= cargo
# What the benchmark against other mounts is asked for. The whole of it takes hours: BENCH="--save docs/benchmarks.json --page"
BENCH ?= --quick
# The tests use one profile, so that a cold run builds everything once.
TEST_FLAGS ?=
# Where cargo puts the program; CARGO_TARGET_DIR and .cargo/config.toml may move it.
SANDPAIL_BIN = $(shell $(CARGO) metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/debug/sandpail

# Program and tests at once: built apart, their dependencies have different features and are built twice.
BUILD_ALL = $(CARGO) build --workspace --all-targets

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long record-instructions lint fuzz bench clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the tests need (apt, pip into .venv, cargo into .tools, npm into the SDK)
	scripts/setup test

demo: ## Build, and use a bucket in a sandbox, through the daemon and the SDK
	scripts/setup demo
	$(CARGO) build -p sandpail
	cd sdk/typescript && npm run --silent examples
	SANDPAIL_BIN=$(SANDPAIL_BIN) scripts/demo

lint: ## Check the format, the lints and the SDK's types
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	cd sdk/typescript && npm run --silent typecheck

test: ## Install what is missing, check format and lints, run all tests
	scripts/setup test
	$(MAKE) lint
	$(BUILD_ALL)
	cd sdk/typescript && npm run --silent examples && npm test --silent
	SANDPAIL_E2E_BIN=$(SANDPAIL_BIN) $(CARGO) test --workspace $(TEST_FLAGS)

test-long: ## The long forms: fsx by the hundred thousand, more seeds, larger files
	scripts/setup test
	$(BUILD_ALL)
	cd sdk/typescript && npm run --silent examples
	SANDPAIL_E2E_BIN=$(SANDPAIL_BIN) SANDPAIL_LONG=1 $(CARGO) test --workspace $(TEST_FLAGS)

record-instructions: ## Record anew how many instructions the hot paths take (the guard that `make test` compares with)
	scripts/setup test
	$(CARGO) test --workspace --test instructions -- --record

fuzz: ## Fuzz what reads foreign bytes, 20 minutes a target (FUZZ="decide --minutes 60")
	fuzz/run $(FUZZ)

bench: ## Compare mounts with other S3 mounts (BENCH="--quick --rows read"), sandboxes with crun and runc
	scripts/setup bench
	$(CARGO) build --release -p sandpail
	benches/peers/run $(BENCH)
	benches/sandbox/run --quick

clean: ## Remove what was built
	$(CARGO) clean
	rm -rf fuzz/target benches/peers/*/target
	rm -rf .venv .tools sdk/typescript/node_modules sdk/typescript/dist sdk/typescript/build
