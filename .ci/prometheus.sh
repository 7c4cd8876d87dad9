#!/bin/sh
# Brings Debian's Prometheus into a folder of its own, for promtool, which reads what /metrics says and the
# alert rules in conf/. Says loudly if it cannot be had; tests with it are then left out.
#   .ci/prometheus.sh FOLDER
set -eu
name=Prometheus
folder=$1
[ -e "$folder/unpacked" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack prometheus
# The server itself is not run; without it and its pages the folder is half as large.
rm -rf "$folder/packages" "$folder/usr/bin/prometheus" "$folder/usr/share"
"$folder/usr/bin/promtool" --version >/dev/null 2>&1 || without "promtool does not run"
touch "$folder/unpacked"
