#!/bin/sh
# Builds what ships, so that the tests run exactly that: the component for both kinds of host, with the
# commands that their manifests have for `spin build`, and the runner. Everything goes into target/artifacts,
# because cargo may hold the lock of its usual folder.
#
# The build script of the tests runs this script. `make test` runs it earlier, because it needs one processor
# where the other steps need all.
set -eu
cd "$(dirname "$0")/../.."
target=target/artifacts
mkdir -p "$target"
# Clippy replaces the compiler, as in `cargo clippy`, so that building what ships also lints it: the component
# for both kinds of host, and what the runner builds of it. It compiles as the compiler does. Only the hashes
# in the names of symbols differ.
if command -v clippy-driver >/dev/null; then
    export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings
else
    unset RUSTC_WORKSPACE_WRAPPER
fi
# Variables that the caller may have set for its own build.
unset CARGO_BUILD_TARGET CARGO_BUILD_TARGET_DIR CARGO_ENCODED_RUSTFLAGS RUSTC RUSTFLAGS
# Variables that cargo sets for a build script. With them, some build scripts here would run again.
for variable in $(env | sed -n 's/^\(CARGO_CFG_[A-Z0-9_]*\|CARGO_FEATURE_[A-Z0-9_]*\|CARGO_MANIFEST_[A-Z]*\|CARGO_PKG_[A-Z_]*\|OUT_DIR\)=.*/\1/p'); do
    unset "$variable"
done

# One caller at a time.
exec 9>"$target/lock"
if command -v flock >/dev/null; then flock 9; fi

component() { # MANIFEST NAME
    command=$(sed -n 's/^command = "\(cargo .*\)"$/\1/p' "$1")
    [ -n "$command" ] || { echo "error: $1 has no line \`command = \"cargo …\"\`" >&2; exit 1; }
    # Each build has its own folder, because their files have the same name.
    $(printf %s "$command" | sed 's/ --target-dir [^ ]*//') --target-dir "$target/$2" 9>&-
    for kind in wasm d; do
        cp -p "$target/$2/wasm32-wasip2/release/broker_fn.$kind" "$target/$2.$kind"
    done
}
component spin-wasi-0.2.toml broker_fn_wasi_0_2
component spin.toml broker_fn
cargo build --release --locked -p runner --target-dir "$target" 9>&-
