#!/bin/sh
# Brings Debian's Postfix, with its smtp-source and smtp-sink and with Cyrus SASL, into a folder of its
# own, to measure against and to talk to. Says loudly if it cannot be had; benches and tests then leave
# out what needs it.
#   .ci/postfix.sh FOLDER
set -eu
name=Postfix
folder=$1
[ -e "$folder/unpacked" ] && [ -e "$folder/usr/sbin/saslpasswd2" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack postfix libsasl2-modules libsasl2-modules-db sasl2-bin
programs=$folder/usr/lib/postfix
runs_with "$programs:$(libraries)" "$programs/sbin/smtpd" "$programs/sbin/master" "$folder/usr/sbin/smtp-source" \
    "$folder/usr/sbin/saslpasswd2"
touch "$folder/unpacked"
