#!/usr/bin/env bash
# `make release`: everything that is published, in target/dist, with checksums. Each artifact is tried.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
dist=target/dist
stage=target/dist.d
rm -rf "$dist" "$stage"
mkdir -p "$dist" "$stage"
say() { printf '\n== %s\n' "$*"; }
skipped=()

# All files have the same date and no owner, so that the same sources make the same archive.
date=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
pack() { # NAME: what is in $stage/NAME, as $dist/NAME.tar.gz
    tar --sort=name --mtime="@$date" --owner=0 --group=0 --numeric-owner -C "$stage" -cf - "$1" | gzip -9n >"$dist/$1.tar.gz"
}

has_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$1" ]; }

# Whether a program needs nothing of its machine: no C library, and no loader.
is_static() { # FILE
    ! readelf --wide --program-headers --dynamic "$1" | grep -E 'INTERP|\(NEEDED\)'
}

# A compiler for the C code in `ring` (TLS). Rust provides the rest: the linker, and musl.
for tool in musl-gcc:musl-tools aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu; do
    command -v "${tool%:*}" >/dev/null || missing="${missing:-} ${tool#*:}"
done
if [ -n "${missing:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing$missing"
    # A target without its compiler is skipped below, with a message.
    { apt-get update -qq && apt-get install -y -qq $missing >/dev/null; } || true
fi

say "man pages and completions"
cargo run --quiet --locked -p runner --example manual -- "$stage/manual"

runner() { # TARGET C-COMPILER
    local target=$1 compiler=$2 name=sentinel-runner-$version-$1 variable
    say "$name"
    if ! command -v "$compiler" >/dev/null; then
        skipped+=("$name: there is no $compiler")
        return
    fi
    if command -v rustup >/dev/null && ! has_target "$target"; then rustup target add "$target"; fi
    if ! has_target "$target"; then
        skipped+=("$name: Rust's own library for it is not installed")
        return
    fi
    variable=${target//-/_}
    env "CC_$variable=$compiler" "CARGO_TARGET_${variable^^}_LINKER=rust-lld" \
        cargo build --locked --release -p runner --target "$target"
    mkdir -p "$stage/$name"
    cp "target/$target/release/sentinel-runner" LICENSE README.md CHANGELOG.md "$stage/$name/"
    cp -r "$stage/manual/." "$stage/$name/"
    is_static "$stage/$name/sentinel-runner" || { echo "error: it is not static" >&2; exit 1; }
    pack "$name"
}
package() { # ARCH TARGET
    local folder=$stage/sentinel-runner-$version-$2
    [ ! -d "$folder" ] || { say "packages for $1"; tests/scripts/packages.sh build "$1" "$2" "$folder" "$dist"; }
}
runner x86_64-unknown-linux-musl musl-gcc
package amd64 x86_64-unknown-linux-musl
runner aarch64-unknown-linux-musl aarch64-linux-gnu-gcc
package arm64 aarch64-unknown-linux-musl

component() { # NAME MANIFEST
    local name=$1 manifest=$2 command source
    say "$name: the component"
    command=$(sed -n 's/^command = "\(.*\)"$/\1/p' "$manifest")
    source=$(sed -n 's/^source = "\(.*\)"$/\1/p' "$manifest")
    $command
    mkdir -p "$stage/$name"
    cp "$source" LICENSE CHANGELOG.md "$stage/$name/"
    # Compose builds its image from the sources, so compose.yaml is not packed.
    mkdir "$stage/$name/deploy"
    cp -r deploy/*.toml deploy/*.service deploy/kubernetes "$stage/$name/deploy/"
    cp -r docs "$stage/$name/"
    # The manifest names the component in the same folder, and has no build section.
    sed -e 's|^source = .*|source = "broker_fn.wasm"|' -e '/^\[component.broker-fn.build\]/,$d' "$manifest" >"$stage/$name/spin.toml"
    grep -qx 'source = "broker_fn.wasm"' "$stage/$name/spin.toml"
    pack "$name"
    # Checks that a host loads the component with this manifest.
    cargo build --quiet --locked -p e2e --bin local-host
    local said=$stage/$name.said host
    : >"$said"
    target/debug/local-host up --from "$stage/$name/spin.toml" --listen 127.0.0.1:0 --state-dir "$stage" >"$said" &
    host=$!
    until grep -q '^listening on' "$said"; do
        kill -0 "$host" || { echo "error: no host loads it" >&2; exit 1; }
        sleep 0.1
    done
    kill "$host"
    wait "$host"
}
component "sentinel-broker-$version" spin.toml
component "sentinel-broker-$version-wasi-0.2" spin-wasi-0.2.toml

say "bills of materials (CycloneDX)"
tests/scripts/tool.sh cargo-cyclonedx 0.5.9
bill() { # PACKAGE TARGET NAME FLAG…
    local package=$1 target=$2 name=$3
    shift 3
    # cargo-cyclonedx writes a file beside each Cargo.toml of the workspace.
    target/tools/bin/cargo-cyclonedx cyclonedx --quiet --format json --target "$target" --override-filename dist-bill "$@"
    # Removes the path of the build folder.
    sed "s|$PWD/||g" "$package/dist-bill.json" >"$dist/$name-$version.cdx.json"
    rm "$package/dist-bill.json"
    rm -f ./*/dist-bill.json tests/programs/hello/dist-bill.json
}
bill runner x86_64-unknown-linux-musl runner
bill broker-fn wasm32-wasip2 broker-fn
bill broker-fn wasm32-wasip2 broker-fn-wasi-0.2 --no-default-features --features wasi-0-2

say "checksums"
(cd "$dist" && sha256sum -- * >SHA256SUMS && sha256sum --check --strict --quiet SHA256SUMS)

say "as cargo installs and packs it"
cargo install --quiet --locked --path runner --root "$stage/installed"
"$stage/installed/bin/sentinel-runner" --version
cargo package --quiet --locked --no-verify --allow-dirty -p broker-fn -p runner

say "the packages, in a clean root"
tests/scripts/packages.sh try "$dist" target/debug/local-host

static=$PWD/$stage/sentinel-runner-$version-x86_64-unknown-linux-musl/sentinel-runner
if [ -x "$static" ] && [ "$(uname -m)" = x86_64 ]; then
    say "the static runner"
    "$static" --version
    # As in the image: the program is the only file, and its user has no name.
    image=$PWD/$stage/image wrapper=$PWD/$stage/in-image
    mkdir -p "$image"
    cp "$static" "$image/"
    if [ "$(id -u)" = 0 ]; then
        printf '#!/bin/sh\nexec chroot --userspec=65532:65532 "%s" /sentinel-runner "$@"\n' "$image" >"$wrapper"
        chmod +x "$wrapper"
        "$wrapper" --version
        SENTINEL_RUNNER=$wrapper cargo test --locked --workspace --test e2e -- --exact \
            bootstrap::two_redis_and_three_sentinels_come_up bootstrap::signals_end_a_run_with_their_codes
        SENTINEL_RUNNER=$static cargo test --locked --workspace --test e2e -- --exact \
            access::servers_that_speak_tls_and_ask_for_certificates_come_up
    else
        SENTINEL_RUNNER=$static cargo test --locked --workspace --test e2e -- bootstrap:: access::
        skipped+=("the static runner in an empty folder: only root may try that")
    fi
fi

say "in $dist"
(cd "$dist" && du --apparent-size --bytes -- * | awk '{ printf "%10d  %s\n", $1, $2 }')
for what in "${skipped[@]}"; do printf 'SKIPPED  %s\n' "$what"; done
