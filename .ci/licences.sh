#!/bin/sh
# The licences of what is compiled into the binary, for packages that carry it: which crates under which
# licence, then the texts, each once. From cargo's own copies of their sources.
#   .ci/licences.sh > FILE
set -eu
cd "$(dirname "$0")/.."
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo tree --quiet --locked --edges normal --prefix none --no-dedupe --format '{p} | {l}' |
    sed 's/^\([^ ]*\) v\([^ ]*\).* | \(.*\)$/\1 \2 \3/' | grep -v '^postrider ' | LC_ALL=C sort -u >"$work/crates"
[ -s "$work/crates" ]

echo "postrider contains these libraries, or parts of them."
echo
sed 's/^\([^ ]*\) \([^ ]*\) /\1 \2: /' "$work/crates"

while read -r name version _; do
    # Two levels, for what a crate carries in turn: RocksDB, LZ4, AWS-LC, mimalloc.
    for text in $(cd "$sources" && find ./*/"$name-$version" -maxdepth 3 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) \
        ! -name '*.rs' ! -name '*.py' | LC_ALL=C sort); do
        sum=$(tr -s '[:space:]' ' ' <"$sources/$text" | md5sum | cut -c 1-32)
        [ -e "$work/$sum" ] || cp "$sources/$text" "$work/$sum"
        echo "${text#./*/}" >>"$work/$sum.for"
    done
done <"$work/crates"

for users in $(cd "$work" && for file in *.for; do echo "$(head -n 1 "$file") $file"; done | LC_ALL=C sort | sed 's/.* //'); do
    printf '\n%s\n' "----------------------------------------------------------------------------"
    cat "$work/$users"
    echo
    cat "$work/${users%.for}"
done
