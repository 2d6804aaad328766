#!/bin/sh
# Installs a cargo tool from crates.io into target/tools, unless that version is installed:
# `tests/scripts/tool.sh NAME VERSION`.
set -eu
cd "$(dirname "$0")/../.."
name=$1 version=$2
"target/tools/bin/$name" --version 2>/dev/null | grep -qwF "$version" && exit 0
printf 'installing %s %s into target/tools, which takes some minutes\n' "$name" "$version" >&2
exec cargo install --quiet --locked --root target/tools --target-dir target/tools/build "$name" --version "$version"
