#!/usr/bin/env bash
# `make test`: every check, one after the other, and one summary. With `lint`: only those that run nothing.
set -uo pipefail
cd "$(dirname "$0")/../.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

summary=() failed=0
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if "$@" 2>&1 | tee -a "$log"; then
        summary+=("ok      $name ($((SECONDS - started)) s)")
    else
        summary+=("FAILED  $name ($((SECONDS - started)) s)")
        failed=1
    fi
}

step "format" cargo fmt --all --check
step "lints of the component" cargo clippy --locked -p broker-fn --target wasm32-wasip2 -- -D warnings
step "lints of its build for WASI 0.2" cargo clippy --locked -p broker-fn --target wasm32-wasip2 --no-default-features --features wasi-0-2 -- \
    -D warnings
step "lints of what clients build of it" cargo clippy --locked -p broker-fn --no-default-features -- -D warnings
if [ "${1:-}" = lint ]; then
    step "lints of everything native (compiles a WebAssembly runtime: minutes, the first time)" \
        cargo clippy --locked --workspace --all-targets -- -D warnings
    step "licences, sources and known flaws of dependencies (builds cargo-deny: minutes, the first time)" tests/scripts/deny.sh
else
    # Clippy in the compiler's place, as `cargo clippy` has it: otherwise every dependency is gone through twice, once to be
    # checked and once to be compiled. For the same reason it is one build of everything: with a choice of packages, cargo would
    # choose other features.
    export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings
    step "lints and build of everything native (compiles a WebAssembly runtime: minutes, the first time)" \
        cargo test --locked --workspace --no-run
    printf '\n== servers\n'
    "${REDIS_SERVER:-redis-server}" --version
    . tests/scripts/tmpdir.sh
    # Most of what they do is to wait for servers.
    step "unit and end-to-end tests" env RUST_TEST_THREADS="$(($(nproc) + 1))" cargo test --locked --workspace
fi

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
grep -hoE '(faults|races|worlds|hosts|failovers|chaos) tried: .*|^not tried here: .*|^warning: NOT CHECKED.*' "$log"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { if (passed + failed > 0) printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
exit "$failed"
