#!/usr/bin/env bash
# Usage: scripts/circom_versions.sh [SECONDS]
#
# Compares rewritten with plain witness programs of every circom on npm: compiles circuits/operators.circom with each
# version of the package circom2 and fuzzes it for SECONDS (60) each. Needs Node.js and npm.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
seen=
for version in $(npm view circom2 versions --json | tr -d '[]", ' ); do
    npm install --prefix "$scratch/$version" --no-save --no-audit --no-fund "circom2@$version" >/dev/null 2>&1
    circom="$scratch/$version/node_modules/.bin/circom2"
    name=$("$circom" --version | tail -1)
    # Some versions of the package have the same compiler.
    case $seen in *"[$name]"*) continue ;; esac
    seen="$seen[$name]"
    "$circom" circuits/operators.circom --O2 --wasm -o "$scratch/$version" >/dev/null
    echo "$name"
    FUZZ_SECONDS=$seconds FUZZ_WITNESS_WASM=$scratch/$version/operators_js/operators.wasm \
        cargo test --locked --quiet --test fuzz witness:: -- --nocapture
done
