#!/bin/sh
# Installs what a fresh machine lacks: the Rust toolchain's parts that rust-toolchain.toml names, and the Redis servers
# that the demo and the tests start. Says what it installs; does nothing where all is there.
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

command -v cargo >/dev/null || {
    say "error: cargo is not installed"
    say "hint: install rustup, see https://rustup.rs"
    exit 1
}
command -v cc >/dev/null || {
    say "error: there is no C compiler (SQLite is built from source for the tests)"
    say "hint: install gcc or clang; on Debian: apt-get install build-essential"
    exit 1
}

if command -v rustup >/dev/null; then
    # Outside of this folder's toolchain file nothing is touched; `rustup` adds nothing that is there already.
    rustup show active-toolchain >/dev/null 2>&1 || { say "installing the Rust toolchain"; rustup toolchain install; }
    rustup target list --installed | grep -qx wasm32-wasip2 || {
        say "installing the Rust target wasm32-wasip2"
        rustup target add wasm32-wasip2
    }
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
elif [ ! -d "$(rustc --print sysroot)/lib/rustlib/wasm32-wasip2" ]; then
    say "error: the Rust target wasm32-wasip2 is not installed, and there is no rustup to install it with"
    say "hint: install rustup, see https://rustup.rs"
    exit 1
fi

# A server is a Sentinel as well, when it is told to be (tests/src/node.rs).
sentinel=${REDIS_SENTINEL:-${REDIS_SERVER:-redis-sentinel}}
missing=
for server in "${REDIS_SERVER:-redis-server}" "$sentinel"; do
    command -v "$server" >/dev/null || missing="$missing $server"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null; then as_root=sudo; else as_root=none; fi
fi
say "installing$missing with the system's package manager"
if [ "$as_root" = none ]; then
    :
elif command -v apt-get >/dev/null; then
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server redis-sentinel >/dev/null
elif command -v dnf >/dev/null; then
    $as_root dnf install -y -q redis
elif command -v apk >/dev/null; then
    $as_root apk add --quiet redis
elif command -v pacman >/dev/null; then
    $as_root pacman -S --noconfirm --quiet redis
elif command -v brew >/dev/null; then
    brew install --quiet redis
fi
for server in $missing; do
    command -v "$server" >/dev/null || {
        say "error: $server is not installed, and could not be installed here"
        say "hint: install Redis (6.2 or later), or name the programs: REDIS_SERVER=… REDIS_SENTINEL=… make …"
        exit 1
    }
done
