# Read by the scripts that bring a server of Debian's into a folder of its own, to talk to in tests
# and to measure against.
# Nothing is installed and nothing is started: packages are only unpacked.
# shellcheck shell=sh
# shellcheck disable=SC2154 # $name and $folder are theirs

# Says why it cannot be had. Tests and benches leave out what needs it, so that is no failure.
without() {
    echo "WARNING: $name cannot be had ($1); what needs it is SKIPPED." >&2
    exit 0
}

# Into the folder's packages, by apt's ordinary client; the second try is for a machine that has no lists yet.
fetch() {
    apt-get download -qq "$@" >/dev/null 2>&1 && return 0
    [ -z "${updated:-}" ] && [ "$(id -u)" -eq 0 ] || return 1
    updated=yes
    apt-get update -qq >/dev/null 2>&1 && apt-get download -qq "$@" >/dev/null 2>&1
}

is_installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# The libraries that a package, and then they themselves, depend on, as far as the system lacks them.
# One of several that would do is enough.
fetch_libraries() {
    dpkg-deb -f "$1" Depends Pre-Depends | sed 's/^[A-Za-z-]*: //' | tr ',' '\n' | sed 's/([^)]*)//g; s/:any//g; s/|/ /g' |
        while read -r choices; do
            case $choices in lib* | zlib*) ;; *) continue ;; esac
            wanted=
            for choice in $choices; do
                if is_installed "$choice" || ls "${choice}"_*.deb >/dev/null 2>&1; then
                    wanted=
                    break
                fi
                wanted="$wanted $choice"
            done
            for choice in $wanted; do
                fetch "$choice" || continue
                fetch_libraries "$(ls "${choice}"_*.deb)"
                break
            done
        done
}

# unpack PACKAGE…: these and their libraries.
unpack() {
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || without "this is not Debian"
    rm -rf "$folder"
    mkdir -p "$folder/packages"
    cd "$folder/packages"
    fetch "$@" || without "apt-get cannot download it"
    for package in "$@"; do
        fetch_libraries "$(ls "${package}"_*.deb)"
    done
    for file in *.deb; do
        dpkg-deb -x "$file" "$folder"
    done
    # In the system these two are one; here all libraries lie in one place as well.
    [ ! -d "$folder/lib" ] || cp -a "$folder/lib/." "$folder/usr/lib/"
}

# Where the libraries of the packages lie.
libraries() {
    echo "$folder/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)"
}

# runs_with LIBRARIES PROGRAM…: is all there that they load?
runs_with() {
    path=$1
    shift
    missing=$(LD_LIBRARY_PATH=$path ldd "$@" 2>&1 | grep 'not found' || true)
    [ -z "$missing" ] || without "libraries are missing:$missing"
}
