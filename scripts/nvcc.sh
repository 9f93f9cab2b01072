#!/usr/bin/env bash
# Usage: scripts/nvcc.sh
#
# Installs nvcc from PyPI as target/nvcc/nvcc, where build.rs finds it, for machines without a CUDA toolkit. Does nothing
# if it is there already. Needs python3 with venv or pip, and a C++ compiler, but no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)
dir=$PWD/target/nvcc
stamp=$dir/packages
if [ -x "$dir/nvcc" ] && [ "$(cat "$stamp" 2>/dev/null)" = "${packages[*]}" ]; then
    exit 0
fi

rm -rf "$dir"
mkdir -p "$dir"
quiet=(--quiet --disable-pip-version-check --no-input)
if python3 -m venv "$dir/venv" >/dev/null 2>&1; then
    "$dir/venv/bin/python" -m pip install "${quiet[@]}" "${packages[@]}" </dev/null
    found=("$dir"/venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
else
    # On Debian venv is a separate package; pip can install into a folder without it.
    rm -rf "$dir/venv"
    python3 -m pip install "${quiet[@]}" --target "$dir/lib" "${packages[@]}" </dev/null
    found=("$dir"/lib/nvidia/cu13/bin/nvcc)
fi
# Wheels do not always keep the executable bit.
bin=$(dirname "${found[0]}")
chmod +x "$bin"/* "$bin/../nvvm/bin"/* 2>/dev/null || true
ln -sfn "${found[0]}" "$dir/nvcc"
"$dir/nvcc" --version >/dev/null
echo "${packages[*]}" >"$stamp"
