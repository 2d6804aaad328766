#!/usr/bin/env bash
# Fuzzes the component in the local host by its own OpenAPI document: no 5xx, and no answer that the document does not
# have. The fuzzer, schemathesis, comes from PyPI into target/.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/schemathesis
version=4.32.5

[ "$("$venv/bin/schemathesis" --version 2>/dev/null)" = "schemathesis, version $version" ] || {
    echo "installing schemathesis $version into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "schemathesis==$version"
}
cargo build --quiet --locked -p e2e --bin local-host

out=$(mktemp)
target/debug/local-host --listen 127.0.0.1:0 >"$out" &
host=$!
trap 'kill "$host" 2>/dev/null; rm -f "$out"' EXIT
until url=$(sed -n 's/^listening on //p' "$out") && [ -n "$url" ]; do
    kill -0 "$host" || { echo "error: the local host has ended" >&2; exit 1; }
    sleep 0.1
done
# It keeps what it has seen where it runs.
cd "$venv"
bin/schemathesis run "$url/openapi.json" --url "$url" --max-examples "${EXAMPLES:-50}" --seed 1 \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance
