#!/bin/bash
# The image of the Containerfile: its last stage is built for real, on a fresh Debian (debootstrap) in the place of the
# registry's and with BINARY in the place of what the first stage compiles. Then it runs as
#   podman run --read-only --cap-drop=all --security-opt=no-new-privileges
# has it: its own command as process 1, its user, no right of root, a root that nobody can write to and a volume. Without
# root or the tools it says so and proves nothing.
#   .ci/container-test.sh BINARY FOLDER       FOLDER keeps the fresh Debian and, where the system has none, buildah
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")

without() {
    echo "WARNING: the image is NOT TESTED: $1." >&2
    exit 0
}
step() { echo "-- $1"; }
fail() {
    echo "FAILED: $1" >&2
    [ ! -e "${log:-}" ] || tail -n 20 "$log" >&2
    exit 1
}
same() { [ "$1" = "$2" ] || fail "$3: $1, not $2"; }
# shellcheck source=.ci/debian.sh
. "$here/debian.sh"
buildah=$folder/buildah/run
image=localhost/postrider
# said KEY…: of the image's configuration, lists with blanks between.
said() {
    python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))["Docker"]["config"]
for key in sys.argv[2:]: value = value[key]
print(*sorted(value) if isinstance(value, dict) else value if isinstance(value, list) else [value])' "$work/image.json" "$@"
}

if [ "${3:-}" != inside ]; then
    [ "$(id -u)" -eq 0 ] || without "it takes root"
    unshare --net --mount --pid --fork true 2>/dev/null || without "this machine lets nobody have a network of their own (unshare)"
    command -v strip >/dev/null || without "strip is missing (apt-get install binutils)"
    "$here/buildah.sh" "$folder/buildah"
    [ -x "$buildah" ] || without "there is no buildah"
    base=$folder/least-$codename.tar
    fresh_debian "$base" ""

    work=$(mktemp -d "$folder/image.XXXXXX")
    tidy() {
        [ -z "${container:-}" ] || "$buildah" rm "$container" >/dev/null || true
        "$buildah" rmi --all --force >/dev/null 2>&1 || true
        rm -rf "$work"
    }
    trap tidy EXIT

    step "build"
    container=$("$buildah" from scratch) || without "buildah cannot work here"
    "$buildah" add -q "$container" "$base" / >/dev/null
    "$buildah" commit -q "$container" "docker.io/library/debian:$codename-slim" >/dev/null
    "$buildah" rm "$container" >/dev/null
    container=
    # What the first stage leaves.
    mkdir -p "$work/first/build/release"
    strip --strip-unneeded -o "$work/first/build/release/postrider" "$binary"
    "$here/licences.sh" >"$work/first/build/third-party"
    awk '/^ARG / { print } /^FROM / { last = /\/debian:/ } last' "$here/../Containerfile" >"$work/Containerfile"
    "$buildah" bud --format docker --pull-never --build-arg "DEBIAN=$codename" --build-context "build=$work/first" \
        -t "$image" -f "$work/Containerfile" "$here/.." >"$folder/build.log" 2>&1 || {
        grep -q "apt-get update" "$folder/build.log" && ! grep -q "^STEP 3/" "$folder/build.log" &&
            without "packages cannot be fetched, see $folder/build.log"
        tail -n 20 "$folder/build.log" >&2
        fail "it cannot be built"
    }
    container=$("$buildah" from --pull-never "$image")
    "$buildah" inspect "$container" >"$work/image.json"
    root=$("$buildah" mount "$container")
    unshare --net --mount --pid --fork --kill-child --mount-proc "$here/container-test.sh" "$binary" "$folder" inside "$work" "$root"
    exit
fi

# ── Inside: no network but loopback, processes and mounts of its own ──────────────────────────────
work=$4
root=$5
log=$work/serve.log
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))'

step "what the image says of itself"
same "$(said User)" 925:925 USER
same "$(said StopSignal)" SIGTERM STOPSIGNAL
same "$(said Volumes)" /var/lib/postrider VOLUME
same "$(said ExposedPorts)" "25/tcp 465/tcp 587/tcp" EXPOSE
same "$(said Entrypoint) $(said Cmd)" "postrider serve" "what it runs"
read -r kind health <<<"$(said Healthcheck Test)"
same "$kind $health" "CMD postrider check --health" HEALTHCHECK
own=$(find "$root" -xdev ! -type l ! -path "$root/proc/*" \( -user 925 -o -group 925 \) -printf '%P %U:%G %m\n')
same "$own" "var/lib/postrider 925:925 700" "what belongs to the user"

step "run"
# A volume begins with what the image has there.
mkdir "$work/volume"
chown 925:925 "$work/volume"
chmod 700 "$work/volume"
touch "$root/etc/postrider/postrider.toml"
mount --bind "$root" "$root"
mount --bind "$work/volume" "$root/var/lib/postrider"
mount --bind "$here/../conf/package.toml" "$root/etc/postrider/postrider.toml"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
mount -o remount,bind,ro "$root/etc/postrider/postrider.toml"
# As with --sysctl; of this network alone.
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
rights=(--reuid 925 --regid 925 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all)
# What `podman exec` would do.
as_user() { chroot --userspec=925:925 --groups= "$root" "$@"; }
# shellcheck disable=SC2086 # a command and its words
as_user $health >/dev/null 2>&1 && fail "it is healthy before it runs"
# shellcheck disable=SC2016 # of the inner shell
unshare --pid --fork --kill-child bash -c 'mount -t proc proc "$1/proc" && cd "$1" && exec unshare --root="$1" setpriv '"${rights[*]}"' $2' \
    start "$root" "$(said Entrypoint) $(said Cmd)" >"$log" 2>&1 &
above=$!
server=
for _ in $(seq 300); do
    server=$(cat "/proc/$above/task/$above/children" 2>/dev/null || true)
    # shellcheck disable=SC2086
    [ -n "$server" ] && as_user $health >/dev/null 2>&1 && break
    kill -0 "$above" 2>/dev/null || fail "it has ended"
    sleep 0.2
done
# shellcheck disable=SC2086
as_user $health >/dev/null || fail "it is not healthy"
status() { sed -n "s/^$1:[[:space:]]*//p" "/proc/${server// /}/status"; }
same "$(status Uid | tr '\t' ' ')" "925 925 925 925" "its user"
same "$(status CapEff) $(status CapBnd) $(status NoNewPrivs)" "0000000000000000 0000000000000000 1" "its rights"
same "$(status NSpid | awk '{ print $NF }')" 1 "its number"

step "stop while a message comes in"
exec 3<>/dev/tcp/127.0.0.1/587
expect() {
    local line
    while read -r -t 30 line <&3; do
        case $line in "$1"-*) ;; "$1"\ *) return ;; *) fail "wanted $1, got $line" ;; esac
    done
    fail "wanted $1, got nothing"
}
say() { printf '%s\r\n' "$@" >&3; }
expect 220; say 'EHLO test.example.com'
expect 250; say 'MAIL FROM:<shop@example.com>'
expect 250; say 'RCPT TO:<someone@example.net>'
expect 250; say DATA
expect 354; say 'From: shop@example.com' 'To: someone@example.net' 'Subject: the first' ''
kill -TERM "${server// /}"
for _ in $(seq 300); do
    grep -q 'stopping:' "$log" && break
    sleep 0.1
done
say 'Hello.' .
expect 250
exec 3>&-
wait "$above" || fail "it did not end well: $?"
[ -e "$work/volume/store/CURRENT" ] || fail "the queue is not in the volume"
echo "the image: all good"
