#!/usr/bin/env bash
# Builds the images of deploy/compose.yaml from this machine's programs, for `make test-hosts`. It uses no
# registry.
#
# Docker would pull and build these images. Here they contain the installed Redis server with its libraries,
# the runner, and the local host under the name `spin`, unless there is a `spin`.
#
#     images.sh RUNNER LOCAL_HOST COMPONENT
set -euo pipefail
cd "$(dirname "$0")/../.."
runner=$1 local_host=$2 component=$3
redis_server=${REDIS_SERVER:-redis-server}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# Adds a file and its libraries at their paths. `as` sets another path for the file.
add() {
    local file=$1 as=${2:-$1} library
    install -D "$(readlink -f "$file")" "$root$as"
    for library in $(ldd "$(readlink -f "$file")" 2>/dev/null | grep -o '/[^ ]*'); do
        [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
    done
}

new() {
    rm -rf "$root"
    mkdir -p "$root"/{data,etc,run,state,usr/local/bin,var/tmp}
    mkdir -m 1777 "$root/tmp"
    printf 'root:x:0:0::/:/bin/sh\nredis:x:999:999::/data:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nredis:x:999:\n' >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    chown 999:999 "$root/data"
}

# import NAME CHANGE…: imports what was added. If `base` is set: that folder, and the added folders `besides`.
import() {
    local name=$1 changes=()
    shift
    for change; do changes+=(--change "$change"); done
    tar -c ${base:+-C "$base" .} -C "$root" ${besides:-.} | podman import --quiet "${changes[@]}" - "$name" >/dev/null
    printf '%s\n' "$name"
}

node=$(sed -n 's/^ *image: *\(sentinel-broker-node:.*\)/\1/p' deploy/compose.yaml | sort -u)
spin=$(sed -n 's/^ *image: *\(.*spin:.*\)/\1/p' deploy/compose.yaml | sort -u)

new
add "$runner" /usr/local/bin/sentinel-runner
server=$(command -v "$redis_server")
add "$server" /usr/local/bin/redis-server
# The program's name decides whether it is a Sentinel.
ln -s redis-server "$root/usr/local/bin/redis-sentinel"
if cli=$(command -v redis-cli); then add "$cli" /usr/local/bin/redis-cli; fi
import "localhost/$node" 'USER redis' 'WORKDIR /data' 'ENTRYPOINT ["sentinel-runner"]' 'ENV PATH=/usr/local/bin'

new
if command -v spin >/dev/null; then
    add "$(command -v spin)" /usr/local/bin/spin
else
    add "$local_host" /usr/local/bin/spin
    # What the local host has compiled of the component, which takes it ten seconds.
    for kept in target/artifacts/compiled/*.cwasm; do
        if [ -e "$kept" ]; then install -D -m 644 "$(readlink -f "$kept")" "$root$(readlink -f "$kept")"; fi
    done
fi
import "$spin" 'WORKDIR /' 'ENTRYPOINT ["spin"]' 'ENV PATH=/usr/local/bin'

# HAProxy, under the image name of its Deployment.
if command -v haproxy >/dev/null; then
    new
    add "$(command -v haproxy)" /usr/local/bin/haproxy
    import "$(sed -n 's/^ *image: *//p' deploy/kubernetes/haproxy/haproxy.yaml)" 'ENV PATH=/usr/local/bin'
fi

# A name server.
if command -v dnsmasq >/dev/null; then
    new
    add "$(command -v dnsmasq)" /usr/local/bin/dnsmasq
    import localhost/sentinel-broker-dns:0.1.0 'ENTRYPOINT ["dnsmasq"]' 'ENV PATH=/usr/local/bin'
fi

# A machine with systemd, the distribution's servers, and the files that docs/deploy.md copies onto it.
machine=$PWD/target/containers/machine
if [ ! -e "$machine.done" ] && command -v debootstrap >/dev/null; then
    rm -rf "$machine"
    suite=$(. /etc/os-release && printf %s "$VERSION_CODENAME")
    debootstrap --variant=minbase --include=systemd,systemd-sysv,redis-server,redis-sentinel "$suite" "$machine" >"$machine.log" 2>&1 || {
        tail -5 "$machine.log" >&2
        exit 1
    }
    touch "$machine.done"
fi
if [ -e "$machine.done" ]; then
    rm -rf "$root"
    install -D "$runner" "$root/root/sentinel-broker/target/release/sentinel-runner"
    install -D -m 644 -t "$root/root/sentinel-broker/deploy" deploy/*.service
    # The unpacked files of the release.
    install -D -m 644 "$component" "$root/root/broker/broker_fn.wasm"
    install -D -m 644 -t "$root/root/broker/deploy" deploy/*.service
    sed -e 's|^source = .*|source = "broker_fn.wasm"|' -e '/^\[component.broker-fn.build\]/,$d' spin.toml >"$root/root/broker/spin.toml"
    install "$(readlink -f "$(command -v spin || printf %s "$local_host")")" "$root/root/broker/spin"
    base=$machine besides="./root/sentinel-broker ./root/broker" import localhost/sentinel-broker-machine:0.1.0 'WORKDIR /root'
fi
# Removes the images of earlier runs, which have no name any more.
podman image prune --force >/dev/null
