#!/usr/bin/env bash
# Builds the check of an NVIDIA GPU (benches/gpu) into target/gpu-check, a folder that is carried to where the GPU is:
# neither Rust nor a network is needed there. Runs it at once if this machine has a GPU, and says what to do otherwise.
# docs/gpu/README.md has more.
#
#     scripts/gpu_check.sh [--build] [OPTION...]
#
# --build: only builds. Other options are the program's, such as --only msm. Needs nvcc, like any build with the feature
# cuda; CUDA_ARCHS chooses architectures. Results go to docs/gpu.
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
# The C library it was linked with and the loader, for a machine whose own are older.
ldd "$folder/gpu" | sed -n 's/.*[[:space:]]\(\/[^[:space:]]*\)[[:space:]].*/\1/p' | while read -r library; do
    cp -L "$library" "$folder/lib/"
done

cat >"$folder/run.sh" <<'EOF'
#!/usr/bin/env bash
# The check of an NVIDIA GPU. Results go to the folder given, or to results/ beside this script.
#
#     run.sh [FOLDER] [OPTION...]
#
# Then the checks once more, at small sizes, under compute-sanitizer: the one at COMPUTE_SANITIZER, in PATH or of a CUDA
# toolkit, if there is any; COMPUTE_SANITIZER=no does without. SANITIZER_SECONDS (600) bounds each of its tools.
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
    # This machine's C library does not serve: the one that was carried.
    for loader in "$here"/lib/ld-*; do
        gpu=("$loader" --library-path "$here/lib" "$here/gpu")
    done
fi

"${gpu[@]}" --out "$out" "$@"
status=$?
# 2 and 3: wrong options, no GPU to use.
if [ "$status" = 2 ] || [ "$status" = 3 ]; then
    exit "$status"
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
    if timeout "${SANITIZER_SECONDS:-600}" "$sanitizer" --tool "$tool" --error-exitcode 9 "${gpu[@]}" --small >"$log" 2>&1; then
        echo "compute-sanitizer $tool: passed"
    else
        echo "compute-sanitizer $tool: FAILED with $?, see $log"
        status=1
    fi
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
