#!/bin/sh
# `make bench-broker`: builds everything with optimisation, and measures it. The output is Markdown, for
# docs/benchmarks.md.
set -eu
cd "$(dirname "$0")/../.."
target=target/artifacts
echo "Building the component, one that says hello, and a local host. The first time this compiles a WebAssembly" >&2
echo "runtime, which takes several minutes; after that it takes none." >&2
cargo rustc --quiet --locked --release --target wasm32-wasip2 -p hello --lib --crate-type cdylib --target-dir "$target"
cargo build --quiet --locked --profile load -p e2e --bins
exec target/load/bench-broker --hello "$target/wasm32-wasip2/release/hello.wasm" ${ONLY:+--only "$ONLY"}
