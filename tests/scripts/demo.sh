#!/bin/sh
# `make demo`: builds what the demo needs, and runs it.
set -eu
cd "$(dirname "$0")/../.."
echo "Building the component, the runner, and a local host for the component. The first time this compiles a" >&2
echo "WebAssembly runtime, which takes several minutes; after that it takes none." >&2
exec cargo run --locked -p e2e --bin demo
