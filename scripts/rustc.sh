#!/bin/sh
# What cargo calls for the crates of this workspace. See .cargo/config.toml for why it is there; it changes nothing.
exec "$@"
