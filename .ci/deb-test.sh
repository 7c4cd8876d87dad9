#!/bin/bash
# The Debian package, as an administrator meets it, in a fresh Debian of its own (debootstrap): install,
# start, send, upgrade, remove, purge. Nothing is installed in the system, and after the packages of the
# fresh Debian have come nothing is asked of the network: the rest has one of its own, with nobody in it but what it starts itself.
# Without root or debootstrap it says so and proves nothing.
#   .ci/deb-test.sh BINARY FOLDER       FOLDER keeps the packages made and the fresh Debian
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")

without() {
    echo "WARNING: the Debian package is NOT TESTED: $1." >&2
    exit 0
}

# shellcheck source=.ci/debian.sh
. "$here/debian.sh"
base=$folder/base-$codename.tar

# What the package depends on, the first of several that would do; and nothing else, so that what it
# fails to name is missed.
dependencies() {
    dpkg-deb -f "$1" Depends | tr ',' '\n' | sed 's/|.*//; s/([^)]*)//; s/ //g' | sort -u | paste -s -d ,
}

if [ "${3:-}" != inside ]; then
    [ "$(id -u)" -eq 0 ] || without "it takes root"
    unshare --net --mount --pid --fork true 2>/dev/null || without "this machine lets nobody have a network of their own (unshare)"
    command -v ip >/dev/null || without "ip is missing (apt-get install iproute2)"
    command -v dpkg-shlibdeps >/dev/null || without "dpkg-shlibdeps is missing (apt-get install dpkg-dev)"
    export DPKG_DEB_COMPRESSOR_TYPE=gzip
    first=$("$here/deb.sh" "$binary" "$folder")
    version=$(dpkg-deb -f "$first" Version)
    second=$("$here/deb.sh" "$binary" "$folder" "$version+next")
    # Another machine, or the next day: the same package.
    again=$(mktemp -d)
    cmp "$first" "$("$here/deb.sh" "$binary" "$again")"
    rm -rf "$again"
    fresh_debian "$base" "$(dependencies "$first")"
    # Ends with all it has started, however it ends.
    exec unshare --net --mount --pid --fork --kill-child --mount-proc "$here/deb-test.sh" "$binary" "$folder" inside "$first" "$second"
fi

# ── Inside: no network but loopback, processes and mounts of its own ──────────────────────────────
first=$4
second=$5
root=$(mktemp -d "$folder/chroot.XXXXXX")
tidy() {
    umount "$root/proc" "$root/dev/null" "$root/dev/urandom" 2>/dev/null || true
    rm -rf --one-file-system "$root" "$folder/far.$$"
}
trap tidy EXIT
tar -C "$root" -xf "$base"
chmod 755 "$root"
mount -t proc proc "$root/proc"
for device in null urandom; do
    [ -e "$root/dev/$device" ] || : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ip link set lo up

export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
inside() { chroot "$root" "$@"; }
step() { echo "-- $1"; }
fail() {
    echo "FAILED: $1" >&2
    [ ! -e "$root/var/log/serve.log" ] || tail -n 20 "$root/var/log/serve.log" >&2
    exit 1
}
install_package() {
    cp "$1" "$root/tmp/postrider.deb"
    inside dpkg -i /tmp/postrider.deb >"$folder/dpkg.log" 2>&1 || { cat "$folder/dpkg.log" >&2; fail "dpkg -i"; }
}
owner() { inside stat -c "%U:%G %a" "$1"; }
same() { [ "$1" = "$2" ] || fail "$3: $1, not $2"; }

# As the unit says, as far as this can be had without systemd: its line, its user, its one capability, and
# nothing that can be written but its own folders (which is also how a container runs it). Its system calls are
# noted.
start() {
    local line tracer=
    line=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/postrider.service")
    ! command -v strace >/dev/null || tracer="strace -D -f -qq -e signal=none -o $folder/calls.txt"
    # shellcheck disable=SC2016,SC2086 # for the inner shell; words of command lines
    unshare --mount bash -euo pipefail -c '
        root=$1
        shift
        mount --rbind "$root" "$root"
        for writable in /var/lib/postrider /var/spool/postrider; do
            mount --bind "$root$writable" "$root$writable"
        done
        mount -t tmpfs tmpfs "$root/tmp"
        mount -o remount,bind,ro "$root"
        exec "$@"' start "$root" $tracer chroot "$root" \
        setpriv --reuid postrider --regid postrider --clear-groups --no-new-privs \
        --inh-caps=-all,+net_bind_service --ambient-caps=-all,+net_bind_service --bounding-set=-all,+net_bind_service \
        $line >>"$root/var/log/serve.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        inside postrider check --health >/dev/null 2>&1 && return
        kill -0 "$server" 2>/dev/null || fail "the server has ended"
        sleep 0.2
    done
    fail "the server takes no mail: $(inside postrider check --health 2>&1)"
}
stop() {
    kill -TERM "$server"
    wait "$server" || fail "the server did not end well: $?"
}

# A message by SMTP over loopback; bash is all that is there to speak it.
send() {
    inside bash -euo pipefail -s "$1" <<'END'
exec 3<>/dev/tcp/127.0.0.1/587
expect() {
    local line
    while read -r -t 30 line <&3; do
        case $line in "$1"-*) ;; "$1"\ *) return ;; *) echo "wanted $1, got $line" >&2; exit 1 ;; esac
    done
    echo "wanted $1, got nothing" >&2
    exit 1
}
say() { printf '%s\r\n' "$@" >&3; }
expect 220; say 'EHLO test.example.com'
expect 250; say 'MAIL FROM:<shop@example.com>'
expect 250; say 'RCPT TO:<someone@example.net>'
expect 250; say DATA
expect 354; say 'From: shop@example.com' 'To: someone@example.net' "Subject: $1" '' 'Hello.' .
expect 250; say QUIT
expect 221
END
}
# The names of the calls in groups like @system-service, and in the groups that they name.
calls_in() {
    local name
    inside systemd-analyze syscall-filter --no-pager "$@" | sed -n 's/^    //p' | grep -v '^#' | while read -r name; do
        case $name in @*) calls_in "$name" ;; *) echo "$name" ;; esac
    done
}
# Every call of the server, after those that gave up its rights, is one that the unit lets it make.
check_calls() {
    local refused
    # What the unit names one by one, besides the groups.
    local named
    named=$(sed -n 's/^SystemCallFilter=\([a-z]\)/\1/p' conf/systemd/postrider.service | tr ' ' '\n')
    { calls_in @system-service; echo "$named"; } | sort -u >"$folder/allowed.txt"
    calls_in @privileged @resources | sort -u >"$folder/forbidden.txt"
    comm -23 "$folder/allowed.txt" "$folder/forbidden.txt" >"$folder/permitted.txt"
    grep -q '^read$' "$folder/permitted.txt" || fail "the calls in @system-service cannot be told"
    sed -n '/execve("\/usr\/bin\/postrider"/,$p' "$folder/calls.txt" | sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p' | sort -u >"$folder/made.txt"
    grep -q '^fdatasync$' "$folder/made.txt" || fail "no calls were noted"
    refused=$(comm -23 "$folder/made.txt" "$folder/permitted.txt" | paste -s -d ' ')
    [ -z "$refused" ] || fail "SystemCallFilter= refuses what the server does: $refused"
}
kept() { inside postrider queue list --status captured --json | grep -c '"id"' || true; }

step "what is in the package"
dpkg-deb -c "$first" | awk '$2 != "root/root" || ($1 !~ /^d/ && $1 ~ /^.....w|^........w/) { print; bad = 1 } END { exit bad }' ||
    fail "owner or mode"
for script in postinst prerm postrm; do
    dpkg-deb --ctrl-tarfile "$first" | tar -xO "./$script" | sh -n || fail "$script"
done
if command -v lintian >/dev/null; then
    # The placeholder of the maintainer's address, and that no bug of Debian's asks for this package.
    lintian --allow-root --fail-on error,warning --suppress-tags \
        bogus-mail-host,bogus-mail-host-in-debian-changelog,initial-upload-closes-no-bugs "$first" || fail "lintian"
fi

step "install"
install_package "$first"
(cd "$root/usr/share/doc/postrider" && grep -rhoE '\]\((docs/|examples/|\.\./|[a-z-]+\.md)[^)#]*' README.md docs | sed 's/^](//' | sort -u |
    while read -r target; do [ -e "$target" ] || [ -e "docs/$target" ] || { echo "$target"; exit 1; }; done) ||
    fail "a link in the guides leads nowhere"
inside id postrider >/dev/null || fail "no user"
same "$(owner /etc/postrider)" "root:postrider 750" /etc/postrider
same "$(owner /etc/postrider/postrider.toml)" "root:postrider 640" postrider.toml
same "$(owner /var/lib/postrider)" "postrider:postrider 711" /var/lib/postrider
same "$(owner /var/spool/postrider/pickup)" "postrider:postrider 2770" pickup
[ -L "$root/etc/systemd/system/multi-user.target.wants/postrider.service" ] || fail "not enabled"
(cd "$root" && md5sum --quiet -c var/lib/dpkg/info/postrider.md5sums) || fail "md5sums"
inside postrider check >/dev/null || fail "the configuration that comes with it"
inside bash -n /usr/share/bash-completion/completions/postrider || fail "completions for bash"
inside bash -c '. /usr/share/bash-completion/completions/postrider; COMP_WORDS=(postrider que) COMP_CWORD=1
    _postrider postrider que postrider; [ "${COMPREPLY[*]}" = queue ]' || fail "completions for bash complete nothing"
if command -v man >/dev/null; then
    for page in "$root"/usr/share/man/man1/postrider*.1.gz; do
        complaint=$(gzip -dc "$page" | man --warnings -Tutf8 -l - 2>&1 >/dev/null) || fail "$page"
        [ -z "$complaint" ] || fail "$page: $complaint"
    done
fi

step "systemd-analyze"
complaint=$(inside systemd-analyze verify --man=no postrider.service 2>&1) || fail "verify: $complaint"
[ -z "$complaint" ] || fail "verify: $complaint"
inside systemd-analyze security --offline=true --threshold=20 --no-pager postrider.service >"$folder/security.txt" ||
    fail "exposure above 2.0, see $folder/security.txt"
tail -n 1 "$folder/security.txt"

step "start and send"
start
send "the first"
same "$(kept)" 1 "messages kept"

# As the file itself says: [delivery] away.
step "send to somebody else"
stop
mkdir "$folder/far.$$"
# In a network of its own, at an address as servers of the internet have them: mail goes to no other by default.
unshare --net bash -c 'touch "$1/there"; until [ -e "$1/go" ]; do sleep 0.1; done; exec "$2" 100.0.0.25 "$1"' \
    far "$folder/far.$$" "$here/far.py" &
waits_for() { until [ -e "$folder/far.$$/$1" ]; do kill -0 "$!" || fail "there is nobody else"; sleep 0.1; done; }
waits_for there
ip link add near type veth peer name far netns "$!"
ip address add 100.0.0.1/24 dev near
ip link set near up
nsenter --target "$!" --net ip address add 100.0.0.25/24 dev far
nsenter --target "$!" --net ip link set far up
touch "$folder/far.$$/go"
waits_for ready
rm -f "$root/etc/resolv.conf"
echo "nameserver 100.0.0.25" >"$root/etc/resolv.conf"
cp -p "$root/etc/postrider/postrider.toml" "$folder/captures.toml"
sed -i '/^\[delivery\]/,$d' "$root/etc/postrider/postrider.toml"
start
send "to somebody else"
arrived() {
    for _ in $(seq 150); do
        [ ! -e "$folder/far.$$/$1.eml" ] || return 0
        sleep 0.2
    done
    fail "message $1 does not arrive: $(inside postrider queue list 2>&1)"
}
arrived 1
grep -q '^RCPT TO:<someone@example.net>' "$folder/far.$$/1.eml" || fail "envelope: $(head -n 3 "$folder/far.$$/1.eml")"
same "$(grep -c '^DKIM-Signature:' "$folder/far.$$/1.eml")" 2 "signatures"
inside postrider log someone@example.net | grep -q delivered || fail "the log does not say that it was delivered"

step "sendmail, by anybody, with the server up and down"
letter() { printf 'From: cron@example.com\nTo: someone@example.net\nSubject: %s\n\nHello.\n' "$1"; }
as_nobody() { inside setpriv --reuid nobody --regid nogroup --clear-groups "$@"; }
letter up | as_nobody postrider sendmail -t -i || fail "sendmail"
arrived 2
stop
letter down | as_nobody postrider sendmail -t -i || fail "sendmail while the server is down"
as_nobody ls /var/lib/postrider >/dev/null 2>&1 && fail "anybody may look into data_dir"
as_nobody ls /var/lib/postrider/maildrop >/dev/null 2>&1 && fail "anybody may look into the maildrop"
start
arrived 3
stop

# The first configuration on README's first screen, as it stands there but for the hash, on the ports that it has; and the
# first message, by its command.
step "what README has a newcomer do"
if command -v curl >/dev/null; then
    fenced() { awk -v fence='```'"$1" '$0 == fence { on = 1; next } /^```/ { on = 0 } on' "$here/../README.md"; }
    hash=$(echo "PASSWORD" | inside postrider account hash)
    fenced toml | awk -v hash="$hash" '/^password_hash/ { $0 = "password_hash = \"" hash "\"" } { print }' \
        >"$root/etc/postrider/postrider.toml"
    [ "$(grep -c '[^[:space:]]' "$root/etc/postrider/postrider.toml")" -lt 12 ] || fail "it has twelve lines or more"
    start
    printf 'From: orders@example.com\nTo: you@example.net\nSubject: First\n\nHello.\n' >"$folder/message.eml"
    (cd "$folder" && fenced sh | sed -n '/^curl /,/[^\\]$/p' |
        sed 's/^curl /&-sS --insecure --resolve mail.example.com:587:127.0.0.1 /' | sh -eu) || fail "the command with curl"
    arrived 4
    same "$(grep -c '^DKIM-Signature:' "$folder/far.$$/4.eml")" 2 "signatures"
    stop
    rm "$folder/message.eml"
else
    echo "WARNING: there is no curl, so the first message was NOT SENT" >&2
fi
cp -p "$folder/captures.toml" "$root/etc/postrider/postrider.toml"
start

step "upgrade"
# What an administrator has changed stays, and so does what is queued.
echo "# mine" >>"$root/etc/postrider/postrider.toml"
chmod 600 "$root/etc/postrider/postrider.toml"
inside chgrp postrider /etc/postrider/postrider.toml
chmod 640 "$root/etc/postrider/postrider.toml"
install_package "$second"
kill -0 "$server" || fail "the server has ended during the upgrade"
send "while the old version goes on"
stop
if command -v strace >/dev/null; then
    step "system calls"
    check_calls
fi
start
same "$(kept)" 2 "messages kept"
send "the third"
same "$(kept)" 3 "messages kept"
tail -n 1 "$root/etc/postrider/postrider.toml" | grep -qx '# mine' || fail "the configuration was written over"
same "$(owner /etc/postrider/postrider.toml)" "root:postrider 640" postrider.toml
# Scripts may run again.
script() { inside env DPKG_MAINTSCRIPT_PACKAGE=postrider "/var/lib/dpkg/info/postrider.$1" "${@:2}" || fail "$* again"; }
script postinst configure "$(dpkg-deb -f "$second" Version)"
script postinst configure ""
stop

step "remove"
inside dpkg --remove postrider >"$folder/dpkg.log" 2>&1 || fail "$(cat "$folder/dpkg.log")"
[ ! -e "$root/usr/bin/postrider" ] || fail "the binary is still there"
[ -d "$root/var/lib/postrider/store" ] || fail "the queue is gone"
[ -e "$root/etc/postrider/postrider.toml" ] || fail "the configuration is gone"
inside id postrider >/dev/null || fail "the user is gone"

step "install again: everything is as it was"
install_package "$second"
start
same "$(kept)" 3 "messages kept"
stop

# Other than what its tools are told there is no systemd in here to watch. `systemctl` notes it; `systemd-run`
# only runs the command.
step "what systemd is told"
mkdir -p "$root/run/systemd/system" "$root/usr/local/bin"
cat >"$root/usr/local/bin/systemctl" <<'END'
#!/bin/sh
echo "$*" >>/var/log/told
case " $* " in *" is-enabled "*) echo enabled ;; esac
END
cat >"$root/usr/local/bin/systemd-run" <<'END'
#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
END
chmod 755 "$root/usr/local/bin/systemctl" "$root/usr/local/bin/systemd-run"
told() {
    sed 's/--[a-z]* //g' "$root/var/log/told" | grep -E '^(start|restart|stop) ' | paste -s -d ' ' || true
    : >"$root/var/log/told"
}
with_systemd=("env" "PATH=/usr/local/bin:$PATH" "dpkg")
: >"$root/var/log/told"
inside "${with_systemd[@]}" --remove postrider >/dev/null 2>&1 || fail "remove"
same "$(told)" "stop postrider.service" "told at removal"
inside dpkg --purge postrider >/dev/null 2>&1 || fail "purge"
cp "$first" "$root/tmp/first.deb"
inside "${with_systemd[@]}" -i /tmp/first.deb >/dev/null 2>&1 || fail "install"
same "$(told)" "start postrider.service" "told at installation"
inside "${with_systemd[@]}" -i /tmp/postrider.deb >/dev/null 2>&1 || fail "upgrade"
same "$(told)" "restart postrider.service" "told at an upgrade"
echo "hostnaem = 1" >>"$root/etc/postrider/postrider.toml"
inside "${with_systemd[@]}" -i /tmp/postrider.deb >"$folder/dpkg.log" 2>&1 || fail "upgrade with a wrong configuration"
same "$(told)" "" "told at an upgrade whose version does not take the configuration"
grep -q "not restarted" "$folder/dpkg.log" || fail "nobody was told that there was no restart"
rm -rf "$root/run/systemd/system" "$root/usr/local/bin/systemctl" "$root/usr/local/bin/systemd-run" "$root/var/log/told"

step "purge"
inside dpkg --purge postrider >"$folder/dpkg.log" 2>&1 || fail "$(cat "$folder/dpkg.log")"
left=$(find "$root" -xdev -path "$root/proc" -prune -o -name '*postrider*' ! -path "$root/tmp/*" -print)
[ -z "$left" ] || fail "left behind: $left"
! grep -q postrider "$root/etc/passwd" "$root/etc/group" "$root/etc/shadow" || fail "the user is still there"
inside dpkg --purge postrider >/dev/null 2>&1 || fail "purge again"
trap - EXIT
tidy
echo "the Debian package: all good"
