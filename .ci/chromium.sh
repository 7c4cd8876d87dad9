#!/bin/sh
# Brings Debian's Chromium into a folder of its own, without a screen, for the tests of the dashboard. Nothing
# is installed: the packages are only unpacked. Says loudly if it cannot be had; tests with it are then
# left out.
#   .ci/chromium.sh FOLDER        makes FOLDER/chromium
set -eu
name=Chromium
folder=$1
[ -x "$folder/chromium" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack chromium chromium-common fonts-dejavu-core
program=$folder/usr/lib/chromium/chromium
[ -x "$program" ] || without "the package has no $program"
paths=$(libraries):$(libraries)/pulseaudio
runs_with "$paths" "$program"
# A configuration for fonts of its own, so that text is drawn where the system has none.
mkdir -p "$folder/fonts"
cat >"$folder/fonts/fonts.conf" <<EOF
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>$folder/usr/share/fonts</dir><cachedir>$folder/fonts/cache</cachedir></fontconfig>
EOF
cat >"$folder/chromium" <<EOF
#!/bin/sh
FONTCONFIG_FILE='$folder/fonts/fonts.conf' LD_LIBRARY_PATH='$paths' exec '$program' "\$@"
EOF
chmod +x "$folder/chromium"
