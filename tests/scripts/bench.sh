#!/bin/sh
# `make bench`: builds everything with optimisation, and measures it. The output is Markdown, for
# docs/benchmarks.md.
set -eu
cd "$(dirname "$0")/../.."
echo "Building the component, the runner and a local host. The first time this compiles a WebAssembly runtime, which" >&2
echo "takes several minutes; after that it takes none." >&2
cargo build --quiet --locked --profile load -p e2e --bins
. tests/scripts/tmpdir.sh
exec target/load/bench "$@"
