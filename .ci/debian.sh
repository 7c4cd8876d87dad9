# Read by the scripts that try packages and images in a fresh Debian: makes one with debootstrap.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $folder is theirs

# Of this machine, and the one that is made.
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

# From where this machine has its own packages.
mirror() {
    apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(LABEL) $(CREATED_BY) $(SITE)' |
        awk -v codename="$codename" '$1 == codename && $2 == "main" && $3 == "Debian" && $4 == "Packages" { print $5; exit }'
}

# The system's debootstrap, or one that is only unpacked here.
bootstrap() {
    if command -v debootstrap >/dev/null; then
        debootstrap "$@"
        return
    fi
    local unpacked=$folder/debootstrap
    if [ ! -e "$unpacked/usr/sbin/debootstrap" ]; then
        mkdir -p "$unpacked"
        (cd "$unpacked" && apt-get download -qq debootstrap && dpkg-deb -x debootstrap_*.deb .) || return 1
    fi
    DEBOOTSTRAP_DIR=$unpacked/usr/share/debootstrap sh "$unpacked/usr/sbin/debootstrap" "$@"
}

# fresh_debian FILE PACKAGES: the least there is and, with commas between, these. FILE is made once, and anew where other
# packages are wanted.
fresh_debian() {
    local file=$1 packages=$2 from root
    [ ! -e "$file" ] || [ "$(cat "$file.for" 2>/dev/null)" != "$packages" ] || return 0
    [ -n "$codename" ] || without "this is not Debian"
    from=$(mirror)
    [ -n "$from" ] || without "apt knows no mirror for $codename (apt-get update)"
    root=$(mktemp -d "$folder/base.XXXXXX")
    if ! bootstrap --variant=minbase ${packages:+--include="$packages"} "$codename" "$root" "$from" >"$folder/debootstrap.log" 2>&1; then
        tail -n 5 "$folder/debootstrap.log" >&2
        rm -rf "$root"
        without "debootstrap has failed, see $folder/debootstrap.log"
    fi
    rm -rf "$root"/var/cache/apt/archives/*.deb
    tar -C "$root" -cf "$file.new" . && mv "$file.new" "$file"
    rm -rf "$root"
    echo "$packages" >"$file.for"
}
