#!/usr/bin/env bash
# Makes this machine and checkout ready to build. Does nothing, and needs no rights, when nothing is missing.
#
#  - the machine: a C++ compiler for RocksDB, libclang and clang's own headers for its bindings
#  - the checkout: `target` becomes a link into the user's cache, so that a new clone finds RocksDB compiled
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/}/.cargo/bin"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
any() { compgen -G "$1" >/dev/null; }

have_cxx() { printf '#include <cstdint>\n' | "${CXX:-c++}" -x c++ -fsyntax-only - >/dev/null 2>&1; }

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    local dir
    for dir in /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu /usr/lib64/llvm*/lib /usr/lib64 /usr/lib /usr/local/lib; do
        { any "$dir/libclang.so*" || any "$dir/libclang-*.so*"; } && return 0
    done
    ldconfig -p 2>/dev/null | grep -q 'libclang[-.]'
}

have_clang_headers() {
    local dir
    for dir in /usr/lib/llvm-*/lib/clang /usr/lib/clang /usr/lib64/clang /usr/local/lib/clang; do
        any "$dir/*/include/stddef.h" && return 0
    done
    command -v clang >/dev/null && [ -f "$(clang -print-resource-dir)/include/stddef.h" ]
}

install_packages() {
    local root=()
    command -v apt-get >/dev/null ||
        die "this machine lacks: $*. There is no apt-get here: install a C++ compiler, make and libclang with its headers, then run this again."
    if [ "$(id -u)" != 0 ]; then
        # Without a terminal nobody can type a password.
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
            root=(sudo)
        else
            die "this machine lacks: $*. Run this as root, then try again: apt-get install -y $*"
        fi
    fi
    say "installing $* with apt-get"
    local apt=(${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    "${apt[@]}" install -y --no-install-recommends "$@" </dev/null >&2 ||
        { "${apt[@]}" update >&2 && "${apt[@]}" install -y --no-install-recommends "$@" </dev/null >&2; } ||
        die "apt-get could not install: $*. Install these packages by hand, then try again."
}

machine() {
    command -v cargo >/dev/null || die "cargo is not here. Install Rust (https://rustup.rs), then try again."
    local missing=()
    have_cxx || missing+=(g++)
    { have_libclang && have_clang_headers; } || missing+=(libclang-dev)
    command -v make >/dev/null || missing+=(make)
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

# A `target` that is there, or a directory that the user chose, is left alone.
target() {
    if [ -n "${CARGO_TARGET_DIR:-}" ]; then
        return
    elif [ -L target ]; then
        mkdir -p "$(readlink -m target)"
    elif [ ! -e target ]; then
        local cache="${XDG_CACHE_HOME:-${HOME:-}/.cache}/longboat/target"
        if mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; then
            ln -s "$cache" target
            say "target is a link to $cache, which other clones share"
        fi
    fi
}

machine
target
