#!/usr/bin/env bash
# `make test`: all checks, except the tests in a browser and those that take half a minute (`long_…`), and a
# summary. With SWEEP=all: all tests. With the argument `long`: only the tests that take half a minute, and
# the whole searches of the unit tests. With `lint`: only the checks that run no test, and the check of the
# dependencies.
set -uo pipefail
cd "$(dirname "$0")/../.."
log=$(mktemp)
logs=$(mktemp -d)
leave() {
    local begun pid
    for begun in "$logs"/*.begun; do
        # Also kills what a step has started, because each step has its own process group.
        [ -e "$begun" ] && read -r pid _ <"$begun" && kill -- "-$pid" 2>/dev/null
    done
    rm -rf "$log" "$logs"
}
trap leave EXIT

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

# Starts a step in the background, without output. Such a step needs about one processor, which the other
# steps leave.
begin() { # NAME COMMAND…
    local name=$1
    shift
    # With job control, the step gets its own process group.
    set -m
    { "$@" 2>&1; echo "$? $SECONDS" >"$logs/$name.ended"; } >"$logs/$name" &
    set +m
    echo "$! $SECONDS" >"$logs/$name.begun"
}
end() { # NAME: its output, and what came of it
    local name=$1 pid started status=1 ended=$SECONDS
    read -r pid started <"$logs/$name.begun"
    wait "$pid"
    # If the step was killed, the file is missing.
    [ ! -e "$logs/$name.ended" ] || read -r status ended <"$logs/$name.ended"
    rm "$logs/$name.begun"
    printf '\n== %s\n' "$name"
    tee -a "$log" <"$logs/$name"
    if [ "$status" = 0 ]; then
        summary+=("ok      $name ($((ended - started)) s, beside others)")
    else
        summary+=("FAILED  $name ($((ended - started)) s, beside others)")
        failed=1
    fi
}

unit_tests() {
    # One at a time, because the end-to-end tests need the other processors.
    export RUST_TEST_THREADS=1
    cargo test --locked --workspace --lib --bins --examples --test rooms && cargo test --locked --workspace --doc
}

ships="lints and build of what ships"
step "format" cargo fmt --all --check
begin "$ships" tests/scripts/artifacts.sh
if [ "${1:-}" = lint ]; then
    step "lints of everything native (compiles a WebAssembly runtime: minutes, the first time)" \
        cargo clippy --locked --workspace --all-targets -- -D warnings
    end "$ships"
    step "licences, sources and known flaws of dependencies (builds cargo-deny: minutes, the first time)" tests/scripts/deny.sh
else
    # Clippy replaces the compiler, as in `cargo clippy`. Otherwise every dependency would be processed twice:
    # checked and compiled. For the same reason it is one build of everything: with selected packages, cargo
    # would choose other features.
    export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings
    step "lints and build of everything native (compiles a WebAssembly runtime: minutes, the first time)" \
        cargo test --locked --workspace --no-run
    end "$ships"
    printf '\n== servers\n'
    "${REDIS_SERVER:-redis-server}" --version
    . tests/scripts/tmpdir.sh
    e2e() { # THREADS ARGUMENT…
        local threads=$1
        shift
        RUST_TEST_THREADS=$threads cargo test --locked --workspace --test e2e -- "$@"
    }
    # These tests mostly wait for servers, so there may be more of them than processors.
    many=$((2 * $(nproc)))
    # A time limit means little if much else runs at the same time. And on a busy machine, `chaos::` would
    # compare two systems that had different machines.
    alone=(timed_ chaos::)
    if [ "${1:-}" = long ]; then
        begin "unit tests, each search whole" env SWEEP=all RUST_TEST_THREADS=1 cargo test --locked --workspace --lib
        step "long end-to-end tests" e2e "$many" long_ --skip chaos::
        end "unit tests, each search whole"
        alone=(chaos::)
    else
        # The tests of the status page need a browser, which is large: `make test-browser`.
        skip=(--skip timed_ --skip chaos:: --skip browser:: --skip long_)
        if [ "${SWEEP:-}" = all ]; then skip=(--skip timed_ --skip chaos::); else alone+=(--skip long_); fi
        begin "unit tests" unit_tests
        step "end-to-end tests" e2e "$many" "${skip[@]}"
        end "unit tests"
    fi
    step "end-to-end tests that need the machine for themselves" e2e 1 "${alone[@]}"
fi

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
grep -hoE '(faults|races|worlds|hosts|failovers|chaos) tried: .*|^not tried here: .*|^warning: NOT CHECKED.*' "$log"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { if (passed + failed > 0) printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
exit "$failed"
