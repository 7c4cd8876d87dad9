#!/bin/sh
# Brings Debian's Postfix, with its smtp-source and smtp-sink and with Cyrus SASL, into a folder of its
# own, to measure against and to talk to. Nothing is installed and nothing is started: the packages are
# only unpacked. Says loudly if it cannot be had; benches and tests then leave out what needs it.
#   .ci/postfix.sh FOLDER
set -eu
folder=$1
master=$folder/usr/lib/postfix/sbin/master
[ -e "$folder/unpacked" ] && [ -e "$folder/usr/sbin/saslpasswd2" ] && exit 0

without() {
    echo "WARNING: Postfix cannot be had ($1); what needs it is SKIPPED." >&2
    exit 0
}
command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || without "this is not Debian"

mkdir -p "$folder/packages"
cd "$folder/packages"

# Into this folder, by apt's ordinary client; the second try is for a machine that has no lists yet.
fetch() {
    apt-get download -qq "$@" >/dev/null 2>&1 && return 0
    [ "$(id -u)" -eq 0 ] && apt-get update -qq >/dev/null 2>&1 && apt-get download -qq "$@" >/dev/null 2>&1
}
fetch postfix libsasl2-modules libsasl2-modules-db sasl2-bin || without "apt-get cannot download it"
# Its libraries, as far as the system lacks them.
for package in libdb5.3 libicu72 libnsl2 libsasl2-2 libssl3 libtirpc3; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || fetch "$package" || true
done
for file in *.deb; do
    dpkg-deb -x "$file" "$folder"
done
libraries=$folder/usr/lib/postfix:$folder/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
missing=$(LD_LIBRARY_PATH=$libraries ldd "$folder/usr/lib/postfix/sbin/smtpd" "$master" | grep 'not found' || true)
[ -z "$missing" ] || without "libraries are missing:$missing"
touch "$folder/unpacked"
