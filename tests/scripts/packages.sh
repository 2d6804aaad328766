#!/usr/bin/env bash
# Builds the Debian and RPM packages of the runner, for `make release`. Then installs, starts, upgrades and
# removes each.
#
#     packages.sh build ARCH TARGET RUNNER-FOLDER DIST    what is in the unpacked RUNNER-FOLDER, as a .deb and an .rpm in DIST
#     packages.sh try DIST HOST                           those of this machine's architecture; HOST is the tests' local host
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
config=/etc/sentinel-broker/node.env
say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

build() { # ARCH TARGET FOLDER DIST [REVISION]
    local arch=$1 target=$2 folder=$3 dist=$4 revision=${5:-1} stage=target/dist.d/package
    tests/scripts/tool.sh cargo-deb 3.8.0
    tests/scripts/tool.sh cargo-generate-rpm 0.21.1
    rm -rf "$stage"
    mkdir -p "$stage"
    cp -r "$folder/sentinel-runner" "$folder/man" "$folder/completions" deploy/node.env "$stage/"
    # The next one has another example: an upgrade has to choose.
    [ "$revision" = 1 ] || echo "# Revision $revision." >>"$stage/node.env"
    # Only the units whose programs are in the package or in the distribution's own packages.
    for unit in deploy/sentinel-broker-{redis@,sentinel@,bootstrap}.service; do
        sed -e 's|/usr/local/bin/sentinel-runner|/usr/bin/sentinel-runner|' -e 's|/etc/systemd/system|/usr/lib/systemd/system|' \
            "$unit" >"$stage/${unit##*/}"
    done
    target/tools/bin/cargo-deb deb --quiet --locked --no-build --no-strip -p runner --target "$target" --deb-revision "$revision" \
        --output "$dist/sentinel-runner_$version-${revision}_$arch.deb"
    gzip -9n "$stage"/man/*.1
    target/tools/bin/cargo-generate-rpm generate-rpm -p runner --target "$target" -s "release = \"$revision\"" \
        -o "$dist/sentinel-runner-$version-$revision.${target%%-*}.rpm"
}

# Every file of the package that is left, as a path below the root.
left() { # ROOT
    (cd "$1" && find usr etc \( -path '*sentinel-runner*' -o -path '*sentinel-broker*' \) ! -type d) | sed 's|^|/|' | sort
}

try_deb() { # ROOT DEB NEXT-DEB HOST
    local root=$1 deb=$2 next=$3 host=$4 url said state unit command page until
    if [ ! -e "$root.done" ]; then
        rm -rf --one-file-system "$root"
        debootstrap --variant=minbase --include=systemd,systemd-sysv,redis-server,redis-sentinel,man-db,bash-completion \
            "$(. /etc/os-release && printf %s "$VERSION_CODENAME")" "$root" >"$root.log" 2>&1 || { tail -5 "$root.log" >&2; return 1; }
        touch "$root.done"
    fi
    in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
    # minbase excludes manuals and documentation.
    rm -f "$root"/etc/dpkg/dpkg.cfg.d/*
    # Removes the files that a failed try has left.
    in_root dpkg --purge sentinel-runner >/dev/null 2>&1 || true
    [ ! -e "$root/var/lib/rpm" ] || rpm --root "$root" --dbpath /var/lib/rpm --nodeps --erase sentinel-runner >/dev/null 2>&1 || true
    rm -rf "$root/etc/sentinel-broker" "$root/var/lib/rpm"
    [ -z "$(left "$root")" ] || fail "the root is not clean: $(left "$root")"

    say "installing $deb"
    cp "$deb" "$root/tmp/first.deb"
    cp "$next" "$root/tmp/next.deb"
    in_root dpkg --install /tmp/first.deb >/dev/null
    in_root sentinel-runner --version
    page=$(in_root man --pager=cat sentinel-runner-rotate)
    case "$page" in *--new-password-file*) ;; *) fail "man has no page for rotate" ;; esac
    in_root bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader sentinel-runner; complete -p sentinel-runner' ||
        fail "bash has no completion for it"
    # Checks that systemd-analyze finds mistakes.
    ! in_root systemd-analyze verify --man=no /usr/lib/systemd/system/sentinel-broker-nothing.service 2>/dev/null ||
        fail "systemd-analyze finds a unit that is not there"
    for unit in redis@6379 sentinel@26379 bootstrap; do
        in_root systemd-analyze verify --man=no "/usr/lib/systemd/system/sentinel-broker-$unit.service" ||
            fail "systemd does not take sentinel-broker-$unit.service"
    done

    say "starting a server as its unit does"
    state=$(mktemp -d) said=$state/said
    "$host" up --from "target/dist.d/sentinel-broker-$version/spin.toml" --listen 127.0.0.1:0 --state-dir "$state" >"$said" &
    begun+=($!)
    until grep -q '^listening on' "$said"; do
        kill -0 "${begun[0]}" || fail "no broker"
        sleep 0.1
    done
    url=$(sed -n 's/^listening on //p' "$said")
    printf 'BROKER_URL=%s\n' "$url" >>"$root$config"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    printf 'port %s\nbind 127.0.0.1\ndir /var/lib/redis\n' "$port" >"$root/etc/redis/try.conf"
    chroot "$root" chown redis:redis /etc/redis/try.conf
    command=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/sentinel-broker-redis@.service")
    # shellcheck disable=SC2046,SC2086
    chroot --userspec=redis:redis "$root" env -i PATH=/usr/bin:/bin $(grep -v '^#' "$root$config") ${command//%i/try} >"$state/join" 2>&1 &
    begun+=($!)
    until=$((SECONDS + 60))
    until [ "$(in_root redis-cli -p "$port" ping 2>/dev/null)" = PONG ]; do
        [ "$SECONDS" -lt "$until" ] || fail "the server does not answer: $(cat "$state/join")"
        kill -0 "${begun[1]}" || { cat "$state/join" >&2; fail "the server ended"; }
        sleep 0.1
    done
    until [[ $(curl -sf "$url/redis") == *"\"port\":$port"* ]]; do
        [ "$SECONDS" -lt "$until" ] || fail "the node is not registered: $(cat "$state/join")"
        kill -0 "${begun[1]}" || fail "the server ended"
        sleep 0.1
    done

    say "upgrading beside the running server"
    in_root dpkg --force-confold --install /tmp/next.deb >/dev/null
    rm -f "$root$config.dpkg-dist"
    grep -q "^BROKER_URL=$url\$" "$root$config" || fail "the upgrade has replaced an edited node.env"
    [ "$(in_root redis-cli -p "$port" ping)" = PONG ] || fail "the upgrade has ended the server"
    kill "${begun[@]}"
    wait "${begun[@]}" || true
    begun=()

    say "removing"
    in_root dpkg --remove sentinel-runner >/dev/null
    [ "$(left "$root")" = "$config" ] || fail "left behind: $(left "$root")"
    in_root dpkg --purge sentinel-runner >/dev/null
    [ -z "$(left "$root")" ] || fail "left behind: $(left "$root")"
    rm -rf "$state" "$root"/tmp/*.deb
}

try_rpm() { # ROOT RPM NEXT-RPM
    local root=$1 rpm=$2 next=$3
    say "installing $rpm"
    rpm --query --package --info "$rpm" 2>/dev/null | grep -E '^(Name|Version|Release|Architecture|License|Summary)'
    rpm --checksig --nosignature "$rpm" >/dev/null || fail "rpm says that it is damaged"
    # Debian's rpm warns each time that rpm is not Debian's package manager.
    on_root() { rpm --root "$root" --dbpath /var/lib/rpm --nosignature --nodeps "$@" 2> >(grep -v '^rpm: ' >&2); }
    on_root --install "$rpm"
    "$root/usr/bin/sentinel-runner" --version
    local file
    for file in man/man1/sentinel-runner-rotate.1.gz bash-completion/completions/sentinel-runner; do
        [ -s "$root/usr/share/$file" ] || fail "the package lacks /usr/share/$file"
    done
    echo 'BROKER_URL=http://broker:3000' >"$root$config"
    on_root --upgrade "$next"
    [ -e "$root$config.rpmnew" ] || fail "the next example is not there beside the edited one"
    rm "$root$config.rpmnew"
    grep -qx 'BROKER_URL=http://broker:3000' "$root$config" || fail "the upgrade has replaced an edited node.env"
    on_root --erase sentinel-runner
    # rpm keeps an edited file under another name.
    [ "$(left "$root")" = "$config.rpmsave" ] || fail "left behind: $(left "$root")"
    rm -r "$root${config%/*}" "$root/var/lib/rpm"
}

try() { # DIST HOST
    local dist=$PWD/$1 host=$PWD/$2 arch=amd64 machine=x86_64 tool missing=
    local first=sentinel-runner_$version-1_$arch.deb
    [ "$(uname -m)" = "$machine" ] && [ -e "$dist/$first" ] || { say "not tried here: packages of $machine"; return; }
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "not tried here: packages (only root may, on Debian)"; return; }
    for tool in debootstrap rpm curl; do command -v "$tool" >/dev/null || missing="$missing $tool"; done
    # shellcheck disable=SC2086
    [ -z "$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
    # The same package as the next revision.
    local next=$PWD/target/dist.d/next
    mkdir -p "$next" target/packages
    build "$arch" "$machine-unknown-linux-musl" "target/dist.d/sentinel-runner-$version-$machine-unknown-linux-musl" "$next" 2
    begun=()
    trap 'kill "${begun[@]}" 2>/dev/null || true' EXIT
    try_deb "$PWD/target/packages/debian" "$dist/$first" "$next/sentinel-runner_$version-2_$arch.deb" "$host"
    # Another root would be the same: the first package was removed from this one.
    try_rpm "$PWD/target/packages/debian" "$dist/sentinel-runner-$version-1.$machine.rpm" "$next/sentinel-runner-$version-2.$machine.rpm"
}

"$@"
