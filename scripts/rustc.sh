#!/usr/bin/env bash
# What cargo calls for the crates of this workspace. See .cargo/config.toml for why it is there; it changes nothing.
# Not for sh: some of them drop variables with a dash in the name, such as CARGO_BIN_EXE_longboat-bench.
exec "$@"
