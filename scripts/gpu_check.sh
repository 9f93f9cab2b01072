#!/usr/bin/env bash
# Usage: scripts/gpu_check.sh [--build] [OPTION...]
#
# Builds the check of an NVIDIA GPU (benches/gpu) into target/gpu-check, a folder that can be copied to a machine with a
# GPU; neither Rust nor a network is needed there. Runs it at once if this machine has a GPU, and says what to do
# otherwise. Results go to docs/gpu. See docs/gpu/README.md.
#
# --build only builds. Other options are passed to the program, such as --only msm. Needs nvcc, like any build with the
# feature cuda; CUDA_ARCHS selects architectures.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

run=yes
if [ "${1:-}" = --build ]; then
    run=no
    shift
fi

PROVER_GPU_CHECK_COMMIT=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || PROVER_GPU_CHECK_COMMIT+=" with changes"
export PROVER_GPU_CHECK_COMMIT

messages=$(cargo bench --no-run --locked --features cuda --bench gpu --message-format=json-render-diagnostics)
built=$(sed -n 's/.*"executable":"\([^"]*\/gpu-[0-9a-f]*\)".*/\1/p' <<<"$messages" | tail -1)
if [ -z "$built" ]; then
    echo "cargo named no program for the bench gpu" >&2
    exit 1
fi

folder=$PWD/target/gpu-check
rm -rf "$folder"
mkdir -p "$folder/lib"
cp "$built" "$folder/gpu"
if command -v strip >/dev/null; then
    strip "$folder/gpu"
fi
# The C library it was linked with and the loader, for a machine with older ones.
ldd "$folder/gpu" | sed -n 's/.*[[:space:]]\(\/[^[:space:]]*\)[[:space:]].*/\1/p' | while read -r library; do
    cp -L "$library" "$folder/lib/"
done
# These are needed by the driver's library. In a C library older than 2.34 they are separate and incompatible with this
# one; without them no driver would be found.
libc=$(ldd "$folder/gpu" | sed -n 's/.*=> \(\/.*\)\/libc\.so\.6 .*/\1/p')
for part in libdl.so.2 libpthread.so.0 librt.so.1; do
    if [ -e "$libc/$part" ]; then
        cp -L "$libc/$part" "$folder/lib/"
    fi
done

cat >"$folder/run.sh" <<'EOF'
#!/usr/bin/env bash
# Usage: run.sh [FOLDER] [OPTION...]
#
# Checks an NVIDIA GPU. Results go to FOLDER, by default results/ next to this script. Then runs the checks again, at
# small sizes: on three cores, and under compute-sanitizer, if there is one at COMPUTE_SANITIZER, in PATH or in a CUDA
# toolkit.
#
# Environment:
#   CHECK_SECONDS                (1800) time limit; if the check hangs, the files have its results up to there
#   CUDA_DEVICE_MAX_CONNECTIONS  (32; the driver's default is 8) connections to the device for streams
#   COMPUTE_SANITIZER            path of compute-sanitizer; "no" skips it
#   SANITIZER_SECONDS            (600) time limit for each of the runs at small sizes
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$here/results
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    out=$1
    shift
fi
mkdir -p "$out"

gpu=("$here/gpu")
if ! "${gpu[@]}" --list >/dev/null 2>&1; then
    # This machine's C library does not work with it: use the one in lib/.
    for loader in "$here"/lib/ld-*; do
        gpu=("$loader" --library-path "$here/lib" "$here/gpu")
    done
fi

export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-32}
seconds=${CHECK_SECONDS:-1800}
timeout -k 10 "$seconds" "${gpu[@]}" --out "$out" "$@"
status=$?
case $status in
# Wrong options, no GPU to use.
2 | 3) exit "$status" ;;
124 | 137)
    echo "the check did not end in $seconds s; what it got to, and what it hung in, is in $out" >&2
    exit 124
    ;;
esac

# With fewer than four cores for each GPU, threads that wait for it sleep, which is another way through the driver.
if taskset -c 0-2 true 2>/dev/null; then
    log=$out/sleeping.txt
    timeout -k 10 "${SANITIZER_SECONDS:-600}" taskset -c 0-2 "${gpu[@]}" --small >"$log" 2>&1
    ended=$?
    case $ended in
    0) echo "on three cores: passed" ;;
    *) echo "on three cores: FAILED with $ended, see $log" ;;
    esac
    [ "$ended" = 0 ] || status=1
fi

sanitizer=${COMPUTE_SANITIZER:-}
if [ -z "$sanitizer" ]; then
    for found in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer \
        /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
        if [ -x "$found" ]; then
            sanitizer=$found
            break
        fi
    done
fi
if [ -z "$sanitizer" ] || [ "$sanitizer" = no ]; then
    echo "compute-sanitizer: not run"
    exit "$status"
fi
for tool in memcheck racecheck; do
    log=$out/$tool.txt
    timeout -k 10 "${SANITIZER_SECONDS:-600}" "$sanitizer" --tool "$tool" --error-exitcode 9 "${gpu[@]}" --small >"$log" 2>&1
    ended=$?
    case $ended in
    0) echo "compute-sanitizer $tool: passed" ;;
    124 | 137) echo "compute-sanitizer $tool: did not end in time, see $log" ;;
    *) echo "compute-sanitizer $tool: FAILED with $ended, see $log" ;;
    esac
    [ "$ended" = 0 ] || status=1
done
exit "$status"
EOF
chmod +x "$folder/run.sh"
echo "built $folder ($(du -sh "$folder" | cut -f1))"

if [ "$run" = no ]; then
    exit 0
fi
if [ -e /dev/nvidiactl ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; then
    exec "$folder/run.sh" "$PWD/docs/gpu" "$@"
fi
cat <<EOF
This machine has no NVIDIA GPU. Carry the folder to one that has, and there:

    gpu-check/run.sh results

Then bring results/RESULTS-*.json and results/RESULTS-*.md back to docs/gpu.
EOF
