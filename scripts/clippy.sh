#!/usr/bin/env bash
# clippy.sh ARGS...: `cargo clippy ARGS -- -D warnings`, of this clone alone. Cargo's own clippy puts a wrapper in place of ours,
# and so takes the crates of one clone for those of another that shares the target directory. See .cargo/config.toml.
# Cargo calls this file too, for the crates of the workspace; then the arguments are those of the compiler.
set -euo pipefail
if [ -n "${LONGBOAT_CLIPPY:-}" ]; then
    exec clippy-driver "$@"
fi
export LONGBOAT_CLIPPY=1 CLIPPY_ARGS="-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__"
RUSTC_WORKSPACE_WRAPPER="$(cd "$(dirname "$0")" && pwd)/clippy.sh" exec cargo check "$@"
