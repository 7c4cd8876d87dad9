#!/bin/sh
# Makes the Debian package of a built binary, with dpkg-deb; dpkg-shlibdeps says which libraries it
# depends on. The same input gives the same file. DPKG_DEB_COMPRESSOR_TYPE=gzip is quicker than xz.
#   .ci/deb.sh BINARY FOLDER [VERSION]     → FOLDER/postrider_VERSION_ARCHITECTURE.deb, whose name it prints
set -eu
binary=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2")
cd "$(dirname "$0")/.."
version=${3:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-1}

for tool in dpkg-deb dpkg-shlibdeps strip gzip; do
    command -v "$tool" >/dev/null 2>&1 && continue
    echo "$tool is missing. On Debian: sudo apt-get install --no-install-recommends dpkg-dev binutils gzip" >&2
    exit 1
done

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
maintainer="${DEBFULLNAME:-The postrider authors} <${DEBEMAIL:-postrider@localhost}>"
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
umask 022

# put MODE FILE PATH
put() { install -D -m "$1" "$2" "$root$3"; }

put 755 "$binary" /usr/bin/postrider
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/postrider"
put 644 conf/systemd/postrider.service /usr/lib/systemd/system/postrider.service
put 644 conf/systemd/sysusers.conf /usr/lib/sysusers.d/postrider.conf
put 644 conf/systemd/tmpfiles.conf /usr/lib/tmpfiles.d/postrider.conf
put 644 conf/package.toml /etc/postrider/postrider.toml
for example in conf/*.toml conf/grafana.json conf/prometheus-alerts.yml; do
    [ "$example" = conf/package.toml ] || put 644 "$example" "/usr/share/doc/postrider/examples/$(basename "$example")"
done
# The examples lie beside the guides here; what only the sources have is not there.
for guide in README.md docs/*.md; do
    sed 's,](\(\.\./\)\{0\,1\}conf/,](\1examples/,g' "$guide" >"$work/guide"
    put 644 "$work/guide" "/usr/share/doc/postrider/$guide"
done
put 644 .ci/debian/copyright /usr/share/doc/postrider/copyright
sed '1,/^$/d' LICENSE-MIT | sed 's/^$/./; s/^/ /' >>"$root/usr/share/doc/postrider/copyright"

"$binary" man --out "$root/usr/share/man/man1"
"$binary" completions bash >"$work/bash"
"$binary" completions zsh >"$work/zsh"
"$binary" completions fish >"$work/fish"
put 644 "$work/bash" /usr/share/bash-completion/completions/postrider
put 644 "$work/zsh" /usr/share/zsh/vendor-completions/_postrider
put 644 "$work/fish" /usr/share/fish/vendor_completions.d/postrider.fish

cat >"$work/changelog" <<END
postrider ($version) unstable; urgency=medium

  * Built from the sources of this version; what changed is in their history.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END
put 644 "$work/changelog" /usr/share/doc/postrider/changelog.Debian
.ci/licences.sh >"$work/third-party"
put 644 "$work/third-party" /usr/share/doc/postrider/third-party
gzip -9n "$root/usr/share/doc/postrider/third-party" "$root/usr/share/doc/postrider/changelog.Debian" "$root"/usr/share/man/man1/*.1

# It wants a source package around it.
mkdir "$work/debian"
printf 'Source: postrider\n\nPackage: postrider\nArchitecture: any\n' >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O -e root/usr/bin/postrider 2>"$work/trouble") || {
    cat "$work/trouble" >&2
    exit 1
}
libraries=${libraries#shlibs:Depends=}

install -d "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: postrider
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -k -s --apparent-size "$root" | cut -f 1)
Depends: $libraries, systemd | systemd-standalone-sysusers | systemd-sysusers, systemd | systemd-standalone-tmpfiles | systemd-tmpfiles
Recommends: ca-certificates
Section: mail
Priority: optional
Description: mail server for applications: SMTP relay and inbound MX
 One binary and one file of configuration. Applications submit, mail leaves
 signed, straight to the recipients' servers or by smart hosts. Mail for your
 domains comes in, is checked, and goes by alias or catchall to a web hook, a
 Maildir or elsewhere.
 .
 What was acknowledged is on disk, and every message has a story.
END
echo /etc/postrider/postrider.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    put 755 ".ci/debian/$script" "/DEBIAN/$script"
done
(cd "$root" && find . -type f ! -path './DEBIAN/*' ! -path './etc/*' -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) \
    >"$work/md5sums"
put 644 "$work/md5sums" /DEBIAN/md5sums

find "$root" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
package=$folder/postrider_${version}_$architecture.deb
dpkg-deb --root-owner-group -Z"${DPKG_DEB_COMPRESSOR_TYPE:-xz}" -b "$root" "$package" >/dev/null
echo "$package"
