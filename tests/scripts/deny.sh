#!/bin/sh
# Checks licences, sources and known flaws of every dependency with cargo-deny, as configured in deny.toml.
set -eu
cd "$(dirname "$0")/../.."
tests/scripts/tool.sh cargo-deny 0.20.2
deny() { target/tools/bin/cargo-deny --locked "$@"; }

deny check licenses bans sources
if fetched=$(deny fetch db 2>&1); then
    deny check advisories
else
    echo "warning: NOT CHECKED for known flaws: the database of RustSec can't be fetched" >&2
    printf '%s\n' "$fetched" | sed 's/^/    /' >&2
fi
