#!/bin/sh
# Brings Debian's mkfs.xfs into a folder of its own, for power cuts on XFS. Says loudly if it cannot be had; the
# tests then leave out what needs it.
#   .ci/xfsprogs.sh FOLDER
set -eu
name=mkfs.xfs
folder=$1
[ -e "$folder/unpacked" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack xfsprogs
runs_with "$(libraries)" "$folder/sbin/mkfs.xfs"
touch "$folder/unpacked"
