#!/bin/sh
# Brings Debian's Go into a folder of its own, for the tests of what the guides tell users of Go. Nothing is
# installed: the packages are only unpacked. Says loudly if it cannot be had; those tests are left out then.
#   .ci/go.sh FOLDER        makes FOLDER/go
set -eu
folder=$1
[ -x "$folder/go" ] && exit 0

without() {
    echo "WARNING: Go cannot be had ($1); tests with it are SKIPPED." >&2
    exit 0
}
command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || without "this is not Debian"

mkdir -p "$folder/packages"
cd "$folder/packages"

# Into this folder, by apt's ordinary client.
fetch() { apt-get download -qq "$@" >/dev/null 2>&1; }
# Debian's choice of a version, and all it needs to compile programs that use the standard library only.
version() { apt-cache depends golang-go 2>/dev/null | sed -n 's/.*Depends: golang-\([0-9.]*\)-go$/\1/p' | head -n 1; }
wanted=$(version)
# The second try is for a machine that has no lists yet.
if [ -z "$wanted" ] && [ "$(id -u)" -eq 0 ]; then
    apt-get update -qq >/dev/null 2>&1 || true
    wanted=$(version)
fi
[ -n "$wanted" ] || without "apt does not know it"
fetch "golang-$wanted-go" "golang-$wanted-src" || without "apt-get cannot download it"
for file in *.deb; do
    dpkg-deb -x "$file" "$folder"
done
rm -f ./*.deb
cat >"$folder/go" <<END
#!/bin/sh
# No modules and no network: the standard library is all there is.
GOROOT='$folder/usr/lib/go-$wanted' GOCACHE='$folder/cache' GOPATH='$folder/path' GO111MODULE=off GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
export GOROOT GOCACHE GOPATH GO111MODULE GOPROXY GOTOOLCHAIN CGO_ENABLED
exec '$folder/usr/lib/go-$wanted/bin/go' "\$@"
END
chmod +x "$folder/go"
"$folder/go" version >/dev/null 2>&1 || { rm -f "$folder/go"; without "it does not run here"; }
