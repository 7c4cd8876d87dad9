#!/bin/sh
# Brings Debian's libfaketime into a folder of its own, which tells a program another time. Says loudly if it cannot
# be had; the tests then leave out what needs it.
#   .ci/faketime.sh FOLDER
set -eu
name=libfaketime
folder=$1
[ -e "$folder/unpacked" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack libfaketime
ln -sf "$(libraries)/faketime/libfaketimeMT.so.1" "$folder/libfaketime.so"
runs_with "$(libraries)" "$folder/libfaketime.so"
touch "$folder/unpacked"
