#!/bin/sh
# Brings Debian's PHP into a folder of its own, for the tests of sendmail: its mail() is what we promise to
# serve. Nothing is installed: the packages are only unpacked. Says loudly if it cannot be had; the test then
# writes what PHP writes, and leaves out PHP itself.
#   .ci/php.sh FOLDER        makes FOLDER/php
set -eu
folder=$1
[ -x "$folder/php" ] && exit 0

without() {
    echo "WARNING: PHP cannot be had ($1); tests with it are SKIPPED." >&2
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
fetch php8.2-cli || without "apt-get cannot download it"
# Its libraries, as far as the system lacks them.
for package in libargon2-1 libedit2 libicu72 libpcre2-8-0 libsodium23 libxml2; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || fetch "$package" || true
done
for file in *.deb; do
    dpkg-deb -x "$file" "$folder"
done
libraries=$folder/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
missing=$(LD_LIBRARY_PATH=$libraries ldd "$folder/usr/bin/php8.2" | grep 'not found' || true)
[ -z "$missing" ] || without "libraries are missing:$missing"
cat >"$folder/php" <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$folder/usr/bin/php8.2' -n "\$@"
END
chmod +x "$folder/php"
