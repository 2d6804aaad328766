#!/usr/bin/env bash
# Checks that the OpenAPI document is valid, and uses it to fuzz the component in the local host, with and
# without tokens: no 5xx, and no answer that the document does not contain. Both programs come from PyPI into
# target/.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=target/schemathesis
version=4.32.5
validator=0.9.0

[ "$("$venv/bin/pip" list --format=freeze 2>/dev/null | grep -cxE "schemathesis==$version|openapi-spec-validator==$validator")" = 2 ] || {
    echo "installing schemathesis $version and openapi-spec-validator $validator into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "schemathesis==$version" "openapi-spec-validator==$validator"
}
"$venv/bin/python" -m openapi_spec_validator --schema 3.1 broker-fn/openapi.json
cargo build --quiet --locked -p e2e --bin local-host

out=$(mktemp) host=
trap '[ -z "$host" ] || kill "$host" 2>/dev/null; rm -f "$out"' EXIT

# fuzz TOKEN [NAME=VALUE…]: fuzzes a broker with these variables. The client sends this token, unless it is
# empty.
fuzz() {
    local token=$1 url args=()
    shift
    printf '\n== fuzzing with variables: %s; token: %s\n' "${*:-none}" "${token:-none}"
    : >"$out"
    target/debug/local-host --listen 127.0.0.1:0 "${@/#/--variable=}" >"$out" &
    host=$!
    until url=$(sed -n 's/^listening on //p' "$out") && [ -n "$url" ]; do
        kill -0 "$host" || { echo "error: the local host has ended" >&2; exit 1; }
        sleep 0.1
    done
    [ -z "$token" ] || args=(--header "Authorization: Bearer $token")
    # Schemathesis keeps its data in the folder in which it runs.
    (cd "$venv" && bin/schemathesis run ../../broker-fn/openapi.json --url "$url" --max-examples "${EXAMPLES:-50}" --seed 1 "${args[@]}" \
        --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance)
    kill "$host"
    wait "$host" || true
    host=
}

fuzz ""
fuzz writes api_token=writes read_token=reads
fuzz reads api_token=writes read_token=reads
fuzz "" api_token=writes read_token=reads
