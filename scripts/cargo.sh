#!/usr/bin/env bash
# cargo.sh ARGS...: runs cargo and says every half a minute that it is still at work. Compiling RocksDB takes
# minutes in which cargo prints nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/}/.cargo/bin"

tick() {
    local passed="" note=""
    while sleep 30 >/dev/null 2>&1; do
        passed=$((SECONDS / 60))m$(printf '%02d' $((SECONDS % 60)))s note=""
        compgen -G "${CARGO_TARGET_DIR:-target}/release/build/librocksdb-sys-*/out/librocksdb.a" >/dev/null ||
            note=": RocksDB is being compiled, 10 to 20 minutes on 2 cores, once"
        printf '   still building (%s)%s\n' "$passed" "$note" >&2
    done
}

tick &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || true' EXIT
cargo "$@"
