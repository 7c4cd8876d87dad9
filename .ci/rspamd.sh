#!/bin/sh
# Brings Debian's rspamd into a folder of its own. Says loudly if it cannot be had; tests with it are
# then left out. How it is started without what it asks the network for: tests/rspamd.rs.
#   .ci/rspamd.sh FOLDER
set -eu
name=rspamd
folder=$1
[ -e "$folder/unpacked" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack rspamd
runs_with "$folder/usr/lib/rspamd:$(libraries)" "$folder/usr/bin/rspamd"
touch "$folder/unpacked"
