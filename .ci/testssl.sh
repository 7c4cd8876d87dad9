#!/bin/sh
# Brings Debian's testssl.sh into a folder of its own. Says loudly if it cannot be had; the scan with it is then left out.
#   .ci/testssl.sh FOLDER
# To run it: TESTSSL_INSTALL_DIR=FOLDER/etc/testssl PATH=FOLDER/bin:$PATH FOLDER/usr/bin/testssl …
set -eu
name=testssl.sh
folder=$1
[ -e "$folder/unpacked" ] && exit 0
. "$(dirname "$0")/unpack.sh"

for program in openssl hexdump ps; do
    command -v $program >/dev/null 2>&1 || without "there is no $program"
done
unpack testssl.sh
# It does not start without a program that asks name servers, though an address is all that it is given here.
mkdir -p "$folder/bin"
printf '#!/bin/sh\nexit 1\n' >"$folder/bin/host"
chmod +x "$folder/bin/host"
touch "$folder/unpacked"
