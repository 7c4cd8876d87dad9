#!/bin/sh
# Brings Debian's HAProxy into a folder of its own, to stand in front of ours. Says loudly if it cannot be had; the
# tests then leave out what needs it.
#   .ci/haproxy.sh FOLDER
set -eu
name=HAProxy
folder=$1
[ -e "$folder/unpacked" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack haproxy
runs_with "$(libraries)" "$folder/usr/sbin/haproxy"
touch "$folder/unpacked"
