#!/bin/sh
# What comes in with the dependencies (deny.toml), by cargo-deny, which is compiled into the target folder if there is
# none: five minutes, once. The list of known holes is a Git repository on GitHub; where that cannot be reached, this part
# is left out loudly, and the rest counts.
set -eu
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/target}"
export CARGO_TARGET_DIR
version=0.20.2
tools=$CARGO_TARGET_DIR/tools
export PATH="$tools/bin:$PATH"

if [ "$(cargo-deny --version 2>/dev/null)" != "cargo-deny $version" ]; then
    CARGO_TARGET_DIR="$tools/build" cargo install --quiet --locked --root "$tools" cargo-deny@$version
    rm -rf "$tools/build"
fi

# Of what the whole workspace may use, the fuzzer included.
cargo deny --locked --workspace check licenses bans sources

if said=$(cargo deny --locked --workspace check advisories 2>&1); then
    echo "$said"
    exit 0
fi
case $said in
*"failed to fetch advisory database"* | *"failed to load advisory database"* | *"failed to open advisory database"*)
    echo "WARNING: the advisory database (https://github.com/rustsec/advisory-db) cannot be reached; the check for known holes is SKIPPED." >&2
    ;;
*)
    echo "$said" >&2
    exit 1
    ;;
esac
