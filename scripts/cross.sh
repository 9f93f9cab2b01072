#!/usr/bin/env bash
# Usage:
#   scripts/cross.sh linux [NEXTEST ARGUMENT...]   aarch64 Linux: runs all tests under qemu
#   scripts/cross.sh macos                         Apple silicon: type-checks only, because nothing can be run here
#
# Checks the project on other systems, from a Debian machine with x86-64, as root. The target's standard library is
# rustup's, if it is installed (`rustup target add`); otherwise a toolchain is unpacked from Debian packages (rustc-web).
# Installs a cross compiler and qemu, or zig, whose C compiler supports macOS, from PyPI. Everything it builds is in
# target/cross. CI does not run this: it takes half an hour, and the tests an hour more.
#
# qemu 7.2 itself fails some tests: it enforces no memory limit, needs files of its own under `ulimit -f`, prints a
# message when a program aborts, reports a missing program as exit code 127, and is slow for tests with a time limit.
set -euo pipefail
cd "$(dirname "$0")/.."
cross=$PWD/target/cross
system=${1:-}
[ $# = 0 ] || shift
case $system in
linux) target=aarch64-unknown-linux-gnu ;;
macos) target=aarch64-apple-darwin ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
mkdir -p "$cross"

debian() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

# debian_toolchain: unpacks a compiler with the standard libraries of this machine and of aarch64 Linux, and their source.
debian_toolchain() {
    local root=$cross/toolchain std llvm
    if [ ! -x "$root/usr/bin/rustc" ]; then
        local apt=(apt-get -qq -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Dir::State::lists="$cross/lists")
        mkdir -p "$cross/lists/partial" "$cross/debs"
        "${apt[@]}" update
        std=$(apt-cache depends libstd-rust-web-dev | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\)$/\1/p' | head -n 1)
        llvm=$(apt-cache depends "$std" | sed -n 's/.*Depends: \(libllvm[0-9]*\)$/\1/p' | head -n 1)
        (cd "$cross/debs" && "${apt[@]}" download rustc-web rust-web-src "$std" "$llvm" libstd-rust-web-dev libstd-rust-web-dev:arm64)
        for package in "$cross"/debs/*.deb; do dpkg -x "$package" "$root"; done
    fi
    export RUSTC=$root/usr/bin/rustc LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu
}

build_std=()
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
    debian_toolchain
    # Debian has no standard library for macOS: it is compiled, which needs unstable options of the compiler.
    if [ "$system" = macos ]; then
        build_std=(-Z build-std=std,panic_abort)
        export RUSTC_BOOTSTRAP=1
    fi
fi
export CARGO_TARGET_DIR=$cross/target CARGO_INCREMENTAL=0 CUDA_ARCHS=none

if [ "$system" = macos ]; then
    zig=$cross/zig
    [ -x "$zig/bin/python" ] || { python3 -m venv "$zig" && "$zig/bin/pip" install -q ziglang; }
    # A C compiler that drops the options by which crates name the target to Apple's compiler.
    cat >"$cross/cc" <<EOF
#!/bin/bash
given=()
for x in "\$@"; do
    case \$x in --target=* | -m*version-min=* | arm64-apple-* | -arch | arm64) ;; *) given+=("\$x") ;; esac
done
exec "$zig/bin/python" -m ziglang cc -target aarch64-macos "\${given[@]}"
EOF
    printf '#!/bin/bash\nexec "%s" -m ziglang ar "$@"\n' "$zig/bin/python" >"$cross/ar"
    chmod +x "$cross/cc" "$cross/ar"
    export CC_aarch64_apple_darwin=$cross/cc AR_aarch64_apple_darwin=$cross/ar
    exec cargo check --locked --target "$target" "${build_std[@]}" --features icicle --all-targets
fi

debian gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
# Tests start programs, which the kernel must run by qemu.
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
[ -e $binfmt/qemu-aarch64 ] || printf '%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64:' >$binfmt/register
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
exec cargo nextest run --locked --target "$target" --all-features "$@"
