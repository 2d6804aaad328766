#!/bin/sh
# Installs what a fresh machine lacks: the parts of the Rust toolchain that rust-toolchain.toml names, and the
# programs redis-server and redis-sentinel. With the argument `test`, also `ip` (for root), strace, HAProxy,
# promtool, Python, redis-py and podman with podman-compose (for root); with `browser`, Chromium and its driver;
# with `hosts`, HAProxy, Python, podman, what makes machines for podman, and kubernetes-validate. It prints what
# it installs, and installs nothing if everything is there.
set -eu
cd "$(dirname "$0")/../.."

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
    # Changes nothing but the toolchain of this folder's toolchain file. `rustup` installs only what is
    # missing.
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

redis_server=${REDIS_SERVER:-redis-server}
# A server can also run as a Sentinel (tests/harness/node.rs).
redis_sentinel=${REDIS_SENTINEL:-${REDIS_SERVER:-redis-sentinel}}
chromedriver=${CHROMEDRIVER:-chromedriver}

missing='' packages=''
lacks() { ! command -v "$1" >/dev/null; }
if lacks "$redis_server" || lacks "$redis_sentinel"; then
    for server in "$redis_server" "$redis_sentinel"; do
        if lacks "$server"; then missing="$missing $server"; fi
    done
    packages=redis
fi
if [ "${1:-}" = browser ] && lacks "$chromedriver"; then
    missing="$missing $chromedriver"
    packages="$packages chromium"
fi
# Only root can make a network.
if [ "${1:-}" = test ] && [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] && lacks ip; then
    missing="$missing ip"
    packages="$packages iproute2"
fi
# The tests use strace to make a disk slow.
if [ "${1:-}" = test ] && [ "$(uname -s)" = Linux ] && lacks strace; then
    missing="$missing strace"
    packages="$packages strace"
fi
# A proxy in front of the nodes, for clients without Sentinel support.
if { [ "${1:-}" = test ] || [ "${1:-}" = hosts ]; } && lacks haproxy; then
    missing="$missing haproxy"
    packages="$packages haproxy"
fi
# promtool checks metrics and alerts. Only this program is taken from Debian's package, which would start
# Prometheus.
promtool=target/promtool/usr/bin/promtool
needs_promtool() { [ "${1:-}" = test ] && lacks promtool && [ ! -x "$promtool" ]; }
if needs_promtool "$@" && lacks apt-get; then
    missing="$missing promtool"
    packages="$packages prometheus"
fi
bring_promtool() {
    needs_promtool "$@" || return 0
    say "unpacking promtool from the system's package of Prometheus into target/promtool"
    mkdir -p target/promtool
    (cd target/promtool && apt-get download -qq prometheus) 2>/dev/null || {
        [ "$as_root" = none ] || $as_root apt-get update -qq
        (cd target/promtool && apt-get download -qq prometheus)
    }
    dpkg-deb --fsys-tarfile target/promtool/prometheus_*.deb | tar -x -C target/promtool ./usr/bin/promtool
    rm target/promtool/prometheus_*.deb
}
# A Sentinel-aware client of another project, for the tests.
redis_py=target/redis-py redis_py_version=8.1.0
needs_redis_py() {
    [ "${1:-}" = test ] && ! "$redis_py/bin/python" -c "import redis; assert redis.__version__ == '$redis_py_version'" 2>/dev/null
}
if { needs_redis_py "$@" || [ "${1:-}" = hosts ]; } && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing="$missing python3"
    packages="$packages python3"
fi
bring_redis_py() {
    needs_redis_py "$@" || return 0
    say "installing redis-py $redis_py_version into $redis_py"
    python3 -m venv --clear "$redis_py"
    "$redis_py/bin/pip" install --quiet --disable-pip-version-check "redis==$redis_py_version"
}
# podman-compose runs deploy/compose.yaml in a test. Only root reaches the containers' network. If it can't be
# installed, the test prints that.
podman_compose=target/podman-compose podman_compose_version=1.6.0
bring_podman() {
    case "${1:-}" in test) packages=podman ;; hosts) packages="podman debootstrap dnsmasq" ;; *) return 0 ;; esac
    [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] || return 0
    if for program in $packages; do lacks "$program" && break; done; then
        say "installing $packages with the system's package manager"
        install_packages || { say "containers can't be tried here: podman could not be installed"; return 0; }
    fi
    "$podman_compose/bin/podman-compose" --version 2>/dev/null | grep -q "version $podman_compose_version" && return 0
    say "installing podman-compose $podman_compose_version into $podman_compose"
    python3 -m venv --clear "$podman_compose"
    "$podman_compose/bin/pip" install --quiet --disable-pip-version-check "podman-compose==$podman_compose_version" ||
        say "containers can't be tried here: podman-compose could not be installed"
}

# This program has the schemas of Kubernetes' API.
validate=target/kubernetes-validate validate_version=1.37.0
bring_kubernetes_validate() {
    [ "${1:-}" = hosts ] || return 0
    "$validate/bin/python" -c "import kubernetes_validate; assert kubernetes_validate.__version__ == '$validate_version'" 2>/dev/null && return 0
    say "installing kubernetes-validate $validate_version into $validate"
    python3 -m venv --clear "$validate"
    "$validate/bin/pip" install --quiet --disable-pip-version-check "kubernetes-validate==$validate_version" ||
        say "the schemas of Kubernetes can't be tried here: kubernetes-validate could not be installed"
}

as_root=
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null; then as_root=sudo; else as_root=none; fi
fi
# The names of a package manager's packages, if they are not the name used here.
packages_here() {
    for package in $packages; do
        case "$1 $package" in
            "apt redis") echo redis-server redis-sentinel ;;
            "apt chromium") echo chromium chromium-driver fonts-dejavu-core ;;
            "apt python3") echo python3 python3-venv ;;
            "dnf chromium") echo chromium chromedriver ;;
            "apk chromium") echo chromium chromium-chromedriver ;;
            "dnf iproute2") echo iproute ;;
            "dnf prometheus") echo golang-github-prometheus ;;
            # Also podman's network, and a runtime that supports the old control groups.
            "apt podman") echo podman netavark aardvark-dns iptables runc ;;
            "apt dnsmasq") echo dnsmasq-base ;;
            "brew chromium") echo chromium chromedriver ;;
            *) echo "$package" ;;
        esac
    done
}
# The lists of packages have to be split into words.
# shellcheck disable=SC2046
install_packages() {
    if [ "$as_root" = none ]; then
        :
    elif command -v apt-get >/dev/null; then
        $as_root apt-get update -qq
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(packages_here apt) >/dev/null
    elif command -v dnf >/dev/null; then
        $as_root dnf install -y -q $(packages_here dnf)
    elif command -v apk >/dev/null; then
        $as_root apk add --quiet $(packages_here apk)
    elif command -v pacman >/dev/null; then
        $as_root pacman -S --noconfirm --quiet $(packages_here pacman)
    elif command -v brew >/dev/null; then
        brew install --quiet $(packages_here brew)
    fi
}
if [ -n "$missing" ]; then
    say "installing$missing with the system's package manager"
    install_packages
fi
for program in $missing; do
    lacks "$program" || continue
    say "error: $program is not installed, and could not be installed here"
    case "$program" in
        ip) say "hint: install iproute2" ;;
        strace | haproxy) say "hint: install $program" ;;
        promtool) say "hint: install Prometheus' promtool" ;;
        python3) say "hint: install Python 3 with its module venv" ;;
        "$chromedriver") say "hint: install Chromium and its driver, or name the driver: CHROMEDRIVER=… make …" ;;
        *) say "hint: install Redis (7.0 or later), or name the programs: REDIS_SERVER=… REDIS_SENTINEL=… make …" ;;
    esac
    exit 1
done
bring_redis_py "$@"
bring_promtool "$@"
bring_podman "$@"
bring_kubernetes_validate "$@"
