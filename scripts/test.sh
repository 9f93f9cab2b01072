#!/usr/bin/env bash
# Usage: scripts/test.sh
#
# Runs every check of the project on a Debian machine that has Rust; the summary of the tests comes last. No check needs
# a GPU: those that do are in scripts/gpu_check.sh.
#
# Installs what is missing: compilers for C and C++, Node.js, PostgreSQL and Redis from Debian packages; cargo-nextest,
# snarkjs, jsdom, a validator of OpenAPI descriptions, Azurite, moto and nvcc from their registries.
#
# Environment:
#   TEST_POSTGRES_URL, TEST_REDIS_URL  servers to test with; by default those on the standard ports of this machine, or
#                                      servers that are started for the duration of the tests
#   SNARKJS, TEST_NODE_MODULES         an installation of snarkjs and a node_modules folder to use instead of
#                                      target/snarkjs
#   NEXTEST_TEST_THREADS               tests that run at once; by default one per CPU, at least 4
#   CI                                 if set, a tool that cannot be installed and a test that would be skipped are
#                                      errors
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

# from_npm: installs snarkjs (for tests/cross), jsdom and an OpenAPI validator (for tests/http) and Azurite (for
# tests/artifacts). Without them those tests are skipped; in CI that is an error.
from_npm() {
    local modules=$PWD/target/snarkjs/node_modules needed=(snarkjs@0.7.6 jsdom@26.1.0 azurite@3.35.0)
    needed+=(@seriousme/openapi-schema-validator@2.11.0)
    if [ -z "${SNARKJS:-}" ] || [ -z "${TEST_NODE_MODULES:-}" ]; then
        if [ ! -x "$modules/.bin/snarkjs" ] || [ ! -d "$modules/jsdom" ] || [ ! -d "$modules/azurite" ] ||
            [ ! -d "$modules/@seriousme" ]; then
            { debian node nodejs && debian npm npm && mkdir -p target/snarkjs &&
                npm install --prefix target/snarkjs --no-save --no-audit --no-fund "${needed[@]}" </dev/null; } || {
                [ -z "${CI:-}" ] || return 1
                note "could not be installed: ${needed[*]}; the tests with them are SKIPPED"
                return 0
            }
        fi
        export SNARKJS=${SNARKJS:-$modules/.bin/snarkjs} TEST_NODE_MODULES=${TEST_NODE_MODULES:-$modules}
    fi
    [ -d ../shared/cases ] || note "../shared/cases is not there: the tests on those circuits are SKIPPED"
}

# kernels: checks the kernels on this CPU and compiles them for GPUs with nvcc. If nvcc cannot be installed, the latter
# is skipped; in CI that is an error.
kernels() {
    if [ -z "${NVCC:-}" ] && ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
        scripts/nvcc.sh || {
            [ -z "${CI:-}" ] || return 1
            note "nvcc could not be installed from PyPI: the kernels are NOT COMPILED for GPUs"
            export CUDA_ARCHS=none
        }
    fi
    scripts/kernels.sh
}

debian cc gcc libc6-dev
debian c++ g++
step "npm packages"
from_npm
if ! command -v cargo-nextest >/dev/null; then
    step "install cargo-nextest"
    cargo install cargo-nextest --locked </dev/null
fi

# The folder of the servers that this script starts and stops.
SERVERS=
stop_servers() {
    [ -n "$SERVERS" ] || return 0
    [ ! -f "$SERVERS/redis.pid" ] || kill "$(cat "$SERVERS/redis.pid")" 2>/dev/null || true
    [ ! -d "$SERVERS/postgres" ] || as_postgres "$PG_BIN/pg_ctl" -D "$SERVERS/postgres" -m immediate stop >/dev/null || true
    rm -rf "$SERVERS"
}
trap stop_servers EXIT

# PostgreSQL refuses to run as root.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

servers_dir() {
    [ -n "$SERVERS" ] || SERVERS=$(mktemp -d)
    chmod 755 "$SERVERS"
}

# answers HOST PORT: whether something listens there.
answers() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

free_port() {
    local port
    for port in $(seq "$1" "$(($1 + 200))"); do
        answers 127.0.0.1 "$port" || { echo "$port"; return; }
    done
    return 1
}

# tests/faults starts and stops its own servers, so the programs are needed even where servers run.
find_postgres() {
    local found
    found=$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -1 || true)
    [ -z "$found" ] || PG_BIN=$(dirname "$found")
}
PG_BIN=
find_postgres
if [ -z "$PG_BIN" ]; then
    debian initdb postgresql
    find_postgres
fi
debian redis-server redis-server

if [ -z "${TEST_POSTGRES_URL:-}" ]; then
    if answers 127.0.0.1 5432 && psql -qAt -U postgres -h 127.0.0.1 -c "SELECT 1" postgres >/dev/null 2>&1 </dev/null; then
        TEST_POSTGRES_URL=postgres://postgres@127.0.0.1:5432/postgres
    else
        step "start PostgreSQL"
        servers_dir
        port=$(free_port 54320)
        install -d -m 700 "$SERVERS/postgres"
        [ "$(id -u)" != 0 ] || chown postgres "$SERVERS/postgres"
        as_postgres "$PG_BIN/initdb" -D "$SERVERS/postgres" -U postgres --auth trust >/dev/null
        as_postgres "$PG_BIN/pg_ctl" -w -D "$SERVERS/postgres" -l "$SERVERS/postgres/log" \
            -o "-p $port -c unix_socket_directories=$SERVERS/postgres -c max_connections=300" start >/dev/null
        TEST_POSTGRES_URL=postgres://postgres@127.0.0.1:$port/postgres
    fi
fi
if [ -z "${TEST_REDIS_URL:-}" ]; then
    if answers 127.0.0.1 6379; then
        TEST_REDIS_URL=redis://127.0.0.1:6379
    else
        step "start Redis"
        servers_dir
        port=$(free_port 63790)
        redis-server --port "$port" --bind 127.0.0.1 --save '' --daemonize yes --pidfile "$SERVERS/redis.pid" >/dev/null
        TEST_REDIS_URL=redis://127.0.0.1:$port
    fi
fi
export TEST_POSTGRES_URL TEST_REDIS_URL

# An S3 server for tests/artifacts.
step "moto"
scripts/moto.sh

step "format"
cargo fmt --all --check
if command -v shellcheck >/dev/null; then
    step "shell scripts"
    shellcheck scripts/*.sh .ci/run
fi
if command -v cargo-deny >/dev/null; then
    step "licences, doubled crates, sources"
    cargo deny --locked --log-level error check licenses bans sources
    # The advisory database is on a git host that not every machine can reach.
    if cargo deny --locked --log-level off fetch db; then
        cargo deny --locked --log-level error check advisories
    else
        note "the advisory database cannot be fetched here: advisories are not checked"
    fi
else
    note "cargo-deny is not installed: licences and sources are not checked"
fi
# Without GPU code, which lints and documentation do not need.
step "clippy"
CUDA_ARCHS=none cargo clippy --locked --all-targets --all-features -- -D warnings
cargo clippy --locked --no-default-features --all-targets -- -D warnings
step "documentation"
# With the examples, so that dependencies have the same features as in the clippy run and are not compiled again.
CUDA_ARCHS=none RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --all-features --lib \
    --examples
step "kernels"
kernels
step "tests"
# Many tests wait: for leases to end, for servers, for the disk. At least four run at once, so that few CPUs are not
# idle meanwhile.
cpus=$(nproc)
export NEXTEST_TEST_THREADS="${NEXTEST_TEST_THREADS:-$((cpus < 4 ? 4 : cpus))}"
cargo nextest run --locked --all-features
