#!/bin/sh
# Brings Debian's buildah into a folder of its own, to build the image where there is neither podman nor docker. Nothing is
# installed: the packages are only unpacked. Says loudly if it cannot be had.
#   .ci/buildah.sh FOLDER        makes FOLDER/run, which is buildah with images and containers below FOLDER
set -eu
name=buildah
folder=$1
[ -x "$folder/run" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack buildah
runs_with "$(libraries)" "$folder/usr/bin/buildah"
# Nothing is fetched from anywhere.
printf '{ "default": [{ "type": "insecureAcceptAnything" }] }\n' >"$folder/policy.json"
: >"$folder/registries.conf"
# Where the system has them all there is none to add.
mkdir -p "$(libraries)"
cat >"$folder/run.new" <<END
#!/bin/sh
# Which command comes first; these are those that look at images. It starts itself again without the environment, so
# its libraries have to lie among the system's, which they do in mounts of its own.
case \$1 in bud | from | commit | add | copy) command=\$1; shift; set -- "\$command" --signature-policy '$folder/policy.json' "\$@" ;; esac
BUILDAH_ISOLATION=chroot TMPDIR='$folder' exec unshare --mount sh -c 'mount -t overlay -o "lowerdir=$(libraries):\$1" overlay "\$1" && shift && exec "\$@"' \
    libraries '/usr/lib/$(basename "$(libraries)")' '$folder/usr/bin/buildah' --storage-driver vfs \
    --root '$folder/storage' --runroot '$folder/running' --registries-conf '$folder/registries.conf' "\$@"
END
chmod +x "$folder/run.new"
mv "$folder/run.new" "$folder/run"
