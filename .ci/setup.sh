#!/bin/sh
# What the build and the tests need from the system: installs Debian packages that are missing, as
# root or by sudo, else prints the command. Says nothing and takes no time if all is there.
set -eu

if ! command -v cargo >/dev/null 2>&1; then
    echo "There is no Rust toolchain (cargo). Install one from https://rustup.rs, then try again." >&2
    exit 1
fi

# bindgen loads libclang to read RocksDB's header, and needs clang's own headers with it.
# libclang-cpp is another library with a similar name.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    found=$(ls -d /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*-linux-gnu/libclang*.so* /usr/lib/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/local/lib/libclang*.so* 2>/dev/null | grep -v libclang-cpp | head -n 1)
    [ -n "$found" ] || return 1
    for header in /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h \
        /usr/lib64/clang/*/include/stddef.h /usr/local/lib/clang/*/include/stddef.h; do
        [ -e "$header" ] && return 0
    done
    return 1
}

missing=
need() { missing="$missing $1"; }

command -v cc >/dev/null 2>&1 || need gcc
command -v g++ >/dev/null 2>&1 || need g++
command -v make >/dev/null 2>&1 || need make
command -v curl >/dev/null 2>&1 || need curl
have_libclang || need libclang-dev
# The tests let other implementations (Python's smtplib, dkimpy) talk to ours.
if ! command -v python3 >/dev/null 2>&1; then
    need python3
    need python3-venv
elif ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
    need python3-venv
fi
# The fault tests let system calls fail, and the power go for a file system of their own. Where these
# do not work (no root, no loop devices), those tests say so and are left out.
command -v strace >/dev/null 2>&1 || need strace
command -v mkfs.ext4 >/dev/null 2>&1 || [ -x /sbin/mkfs.ext4 ] || need e2fsprogs

[ -z "$missing" ] && exit 0

by_hand() {
    echo "Packages are missing:$missing" >&2
    echo "Install them, then try again:" >&2
    echo "    sudo apt-get update && sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
}

command -v apt-get >/dev/null 2>&1 || by_hand
if [ "$(id -u)" -eq 0 ]; then
    sudo=
elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    sudo=sudo # asks for the password on the terminal if it must
else
    by_hand
fi

echo "Installing what is missing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of names, and an empty word where no sudo is needed
$sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends $missing || by_hand
