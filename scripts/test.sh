#!/usr/bin/env bash
# Every check of the project, on a Debian machine that has Rust. Installs what is missing: a C compiler and Node.js
# from Debian's packages, cargo-nextest and snarkjs from their registries. The tests' closing line comes last.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
note() { printf '!! %s\n' "$*" >&2; }

# debian COMMAND PACKAGE...: installs the packages if the command is missing.
debian() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return 0
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    step "install $*"
    "${sudo[@]}" apt-get update -qq </dev/null
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

# The other prover, for tests/cross. Without it those tests are skipped; in CI that is an error.
snarkjs() {
    local dir=$PWD/target/snarkjs
    if [ -z "${SNARKJS:-}" ]; then
        if [ ! -x "$dir/node_modules/.bin/snarkjs" ]; then
            { debian node nodejs && debian npm npm && mkdir -p "$dir" &&
                npm install --prefix "$dir" --no-save --no-audit --no-fund snarkjs@0.7.6 </dev/null; } || {
                [ -z "${CI:-}" ] || return 1
                note "snarkjs could not be installed: the tests against it are SKIPPED"
                return 0
            }
        fi
        export SNARKJS=$dir/node_modules/.bin/snarkjs
    fi
    [ -d ../shared/cases ] || note "../shared/cases is not there: the tests on those circuits are SKIPPED"
}

debian cc gcc libc6-dev
step "snarkjs"
snarkjs
if ! command -v cargo-nextest >/dev/null; then
    step "install cargo-nextest"
    cargo install cargo-nextest --locked </dev/null
fi

# Services that a test needs are started here, on ports of their own. None needs one yet.

step "format"
cargo fmt --all --check
if command -v shellcheck >/dev/null; then
    step "shell scripts"
    shellcheck scripts/*.sh .ci/run
fi
if command -v cargo-deny >/dev/null; then
    step "licences, doubled crates, sources"
    cargo deny --locked --log-level error check licenses bans sources
    # The advisory database lives on a git host, which not every machine reaches.
    if cargo deny --locked --log-level off fetch db; then
        cargo deny --locked --log-level error check advisories
    else
        note "the advisory database cannot be fetched here: advisories are not checked"
    fi
else
    note "cargo-deny is not installed: licences and sources are not checked"
fi
step "clippy"
cargo clippy --locked --all-targets --all-features -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
step "tests"
cargo nextest run --locked
