#!/bin/sh
# Brings Debian's Dovecot, with LMTP, IMAP and POP3, into a folder of its own. Says loudly if it cannot be
# had; tests with it are then left out.
#   .ci/dovecot.sh FOLDER
#
# To start it, with F for the folder, or a copy of F/usr where other users may come to, since as root
# its processes change theirs:
#   - LD_LIBRARY_PATH is F/usr/lib/dovecot, F/usr/lib/dovecot/modules/old-stats and F/usr/lib/<arch>-linux-gnu.
#   - The configuration C says `import_environment = LD_LIBRARY_PATH`, `libexec_dir = F/usr/lib/dovecot`,
#     `mail_plugin_dir = F/usr/lib/dovecot/modules`, `ssl = no`, base_dir and state_dir of its own, and
#     `base_dir/modules` is a link to F/usr/lib/dovecot/modules (see below).
#   - Its users need not exist in the system: `default_internal_user` and `default_login_user` (with the
#     group) are two that do, such as mail and nobody; the test's own user where that is not root.
#     `chroot =` is set empty for the services anvil, stats, imap-login and pop3-login.
#   - Its master looks for doveconf in /usr/bin, so it is the one that starts it, in the foreground:
#     F/usr/bin/doveconf -c C -m master -e F/usr/sbin/dovecot -F -c C
set -eu
name=Dovecot
folder=$1
[ -e "$folder/unpacked" ] && [ -e "$folder/usr/lib/dovecot/pop3" ] && exit 0
. "$(dirname "$0")/unpack.sh"

unpack dovecot-core dovecot-lmtpd dovecot-imapd dovecot-pop3d
programs=$folder/usr/lib/dovecot
runs_with "$programs:$programs/modules/old-stats:$(libraries)" "$folder/usr/sbin/dovecot" "$folder/usr/bin/doveconf" \
    "$programs/auth" "$programs/lmtp" "$programs/imap" "$programs/imap-login" \
    "$programs/pop3" "$programs/pop3-login"

# All of it can be told where it lies, but for one path that is compiled in, to which even a server
# without TLS goes for its TLS library. Another of the same length takes its place: a link in base_dir, where
# its processes are when they start.
LC_ALL=C sed -i 's|/usr/lib/dovecot/modules|././././././././/modules|g' "$programs"/libdovecot.so.*.*
touch "$folder/unpacked"
