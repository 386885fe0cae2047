#!/usr/bin/env bash
# What this machine allows, then load on one group, on some and on many. About a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
bench="${CARGO_TARGET_DIR:-target}/release/longboat-bench"

"$bench" probe
for case in "1 2048" "48 256" "1000 16"; do
    read -r groups inflight <<<"$case"
    printf 'running for 10 seconds: %s groups x %s in flight\n' "$groups" "$inflight" >&2
    "$bench" throughput --groups "$groups" --inflight "$inflight" --warmup 3 --duration 7
done
