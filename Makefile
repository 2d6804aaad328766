# Everything that a person does with this repository. Each target sets up what it needs.

.DEFAULT_GOAL := help
.PHONY: help setup build demo recording test test-long test-browser test-all test-versions test-hosts bench bench-broker lint release clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## Install what is missing: the wasm target, redis-server, redis-sentinel
	@tests/scripts/setup.sh

build: setup ## Build what ships: the component and the runner
	cargo rustc --locked --release --target wasm32-wasip2 -p broker-fn --lib --crate-type cdylib
	cargo build --locked --release -p runner

demo: setup ## Bring up 3 Redis servers and 3 Sentinels, and kill the master
	@tests/scripts/demo.sh

recording: setup ## Record a real bootstrap on a terminal for the README (docs/bootstrap.svg)
	cargo run --locked -p e2e --bin recording -- docs/bootstrap.svg

test: setup ## Check format and lints, and run the unit tests and all but the longest end-to-end tests
	@tests/scripts/setup.sh test
	@tests/scripts/check.sh

test-long: setup ## Run the end-to-end tests that take half a minute and longer
	@tests/scripts/setup.sh test
	@tests/scripts/check.sh long

test-browser: setup ## Test the status page in a real Chromium
	@tests/scripts/setup.sh browser
	@RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings cargo test --locked --workspace --test e2e -- browser::

test-all: setup ## Run all tests with every long sweep, also in a real Chromium, and a fuzzer against the API
	@tests/scripts/setup.sh test
	@tests/scripts/setup.sh browser
	@tests/scripts/setup.sh hosts
	@SWEEP=all tests/scripts/check.sh
	@tests/scripts/fuzz-api.sh

test-versions: setup ## Run the tests that start servers on other versions of Redis and Valkey (needs root or sudo, and Debian's debootstrap)
	@tests/scripts/versions.sh

test-hosts: setup ## Test deploy/ on real hosts: containers that are killed, created again and cut off; machines with systemd; pods (needs root and podman)
	@tests/scripts/setup.sh hosts
	@SWEEP=all cargo test --locked --workspace --test e2e -- hosts:: deploy:: --nocapture

bench: setup ## Compare the runner with the usual order of commands, and with the fewest commands that are needed
	@tests/scripts/bench.sh

bench-broker: setup ## Compare the broker with a component that only answers hello
	@tests/scripts/bench-broker.sh

lint: setup ## Run the part of `make test` that starts nothing, and check licences and known flaws of dependencies
	@tests/scripts/check.sh lint

release: setup ## Build static runners, the component, man pages, completions, checksums and bills of materials in target/dist
	@tests/scripts/release.sh

clean: ## Remove what was built
	cargo clean
