#!/usr/bin/env bash
# Usage: scripts/moto.sh
#
# Installs moto's server, a local S3 server for tests/artifacts, as target/moto/bin/moto_server. Does nothing if it is
# there already. Needs python3 (3.9 or later) with pip or venv.
set -euo pipefail
cd "$(dirname "$0")/.."

version=5.2.5
dir=$PWD/target/moto
stamp=$dir/version
if [ -x "$dir/bin/moto_server" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$version" ]; then
    exit 0
fi

rm -rf "$dir"
mkdir -p "$dir"
quiet=(--quiet --disable-pip-version-check --no-input)
if python3 -m venv "$dir" >/dev/null 2>&1; then
    "$dir/bin/python" -m pip install "${quiet[@]}" "moto[server]==$version" </dev/null
else
    # On Debian venv is a separate package; pip can install into a folder without it.
    rm -rf "$dir"
    mkdir -p "$dir/bin"
    python3 -m pip install "${quiet[@]}" --target "$dir/lib" "moto[server]==$version" </dev/null
    cat >"$dir/bin/moto_server" <<EOF
#!/bin/sh
PYTHONPATH='$dir/lib' exec python3 -m moto.server "\$@"
EOF
    chmod +x "$dir/bin/moto_server"
fi
"$dir/bin/moto_server" --help >/dev/null
echo "$version" >"$stamp"
