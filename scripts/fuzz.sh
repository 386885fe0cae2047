#!/usr/bin/env bash
# fuzz.sh TARGET SECONDS [libFuzzer's options]: builds a fuzz target and runs it. TARGET `all` runs each in turn.
#
# Works on stable Rust: the compiler's own coverage pass feeds libFuzzer, which libfuzzer-sys compiles. What it builds and
# finds is kept in the user's cache, apart from `target`: other flags would compile everything again. New inputs worth
# keeping stay there; `fuzz/corpus` is the small selection that the tests play again.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${HOME:-/}/.cargo/bin"
targets=(one_core whole_group group_with_a_liar frame runs handshake journal snapshot export resp)

usage() { printf 'usage: scripts/fuzz.sh all|%s SECONDS [OPTIONS]\n' "$(IFS='|'; echo "${targets[*]}")" >&2; exit 2; }
[ $# -ge 2 ] || usage
wanted=$1 seconds=$2
shift 2
[ "$wanted" = all ] || [[ " ${targets[*]} " == *" $wanted "* ]] || usage
[ "$wanted" = all ] || targets=("$wanted")

cache=${XDG_CACHE_HOME:-$HOME/.cache}/longboat/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$cache/target
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"

# With a target named, build scripts and macros are not instrumented.
for target in "${targets[@]}"; do
    cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" --bin "$target"
done
for target in "${targets[@]}"; do
    mkdir -p "$cache/corpus/$target" "$cache/found/$target" "fuzz/corpus/$target"
    printf '== %s, %s s\n' "$target" "$seconds"
    "$CARGO_TARGET_DIR/$host/release/$target" "$cache/corpus/$target" "fuzz/corpus/$target" \
        -max_total_time="$seconds" -max_len=2048 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="$cache/found/$target/" "$@"
done
