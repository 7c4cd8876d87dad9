#!/bin/sh
# The whole suite: a Python, a Node, a Postfix, a Dovecot, an rspamd, an HAProxy, a promtool and a Chromium, the other
# implementations that ours is
# tested against, then `cargo test`. Arguments go to `cargo test`. Called by `make test`, which sets CARGO_TARGET_DIR.
set -eu
cd "$(dirname "$0")/.."

: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/postrider/target}"
export CARGO_TARGET_DIR
venv=$CARGO_TARGET_DIR/python
wanted=tests/interop/requirements.txt

# Made again when the list changes. Without the network the tests that need it are left out, loudly.
if ! cmp -s "$wanted" "$venv/requirements.txt"; then
    echo "Installing $wanted into $venv"
    mkdir -p "$CARGO_TARGET_DIR"
    if python3 -m venv --clear "$venv" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"; then
        cp "$wanted" "$venv/requirements.txt"
    fi
fi

skipped=
if cmp -s "$wanted" "$venv/requirements.txt"; then
    # The tests take this Python, and fail if it cannot do what they need.
    export POSTRIDER_TEST_PYTHON="$venv/bin/python"
    export POSTRIDER_TEST_SCHEMATHESIS="$venv/bin/schemathesis"
else
    skipped="WARNING: the packages of $wanted could not be installed from PyPI; tests with them are SKIPPED."
    echo "$skipped" >&2
fi

# The same for Nodemailer, and for what drives a browser, where there is a Node.
node=$CARGO_TARGET_DIR/node
wanted=tests/interop/package.json
if command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1; then
    if ! cmp -s "$wanted" "$node/installed.json"; then
        echo "Installing $wanted into $node"
        mkdir -p "$node"
        cp "$wanted" "$node/package.json"
        if npm install --prefix "$node" --silent --no-audit --no-fund --no-package-lock --ignore-scripts; then
            cp "$wanted" "$node/installed.json"
        fi
    fi
fi
if cmp -s "$wanted" "$node/installed.json"; then
    export POSTRIDER_TEST_NODE="$node"
else
    more="WARNING: there is no Node, or the packages of $wanted could not be installed from npm; tests with it are SKIPPED."
    echo "$more" >&2
    skipped="$skipped${skipped:+ }$more"
fi

# Where PHP cannot be had, the script says so, and the test with it is left out.
.ci/php.sh "$CARGO_TARGET_DIR/php"
if [ -x "$CARGO_TARGET_DIR/php/php" ]; then
    export POSTRIDER_TEST_PHP="$CARGO_TARGET_DIR/php/php"
fi

# The same of Go.
.ci/go.sh "$CARGO_TARGET_DIR/go"
if [ -x "$CARGO_TARGET_DIR/go/go" ]; then
    export POSTRIDER_TEST_GO="$CARGO_TARGET_DIR/go/go"
fi

# Where Postfix cannot be had, the script says so, and the tests with it are left out.
.ci/postfix.sh "$CARGO_TARGET_DIR/bench/postfix"
if [ -e "$CARGO_TARGET_DIR/bench/postfix/unpacked" ]; then
    export POSTRIDER_TEST_POSTFIX="$CARGO_TARGET_DIR/bench/postfix"
fi

# The same of Dovecot, rspamd and HAProxy.
.ci/dovecot.sh "$CARGO_TARGET_DIR/peers/dovecot"
if [ -e "$CARGO_TARGET_DIR/peers/dovecot/unpacked" ]; then
    export POSTRIDER_TEST_DOVECOT="$CARGO_TARGET_DIR/peers/dovecot"
fi
.ci/rspamd.sh "$CARGO_TARGET_DIR/peers/rspamd"
if [ -e "$CARGO_TARGET_DIR/peers/rspamd/unpacked" ]; then
    export POSTRIDER_TEST_RSPAMD="$CARGO_TARGET_DIR/peers/rspamd"
fi
.ci/haproxy.sh "$CARGO_TARGET_DIR/peers/haproxy"
if [ -e "$CARGO_TARGET_DIR/peers/haproxy/unpacked" ]; then
    export POSTRIDER_TEST_HAPROXY="$CARGO_TARGET_DIR/peers/haproxy"
fi

# mkfs.xfs and libfaketime, for faults of the disk and of the clock.
.ci/xfsprogs.sh "$CARGO_TARGET_DIR/peers/xfsprogs"
if [ -e "$CARGO_TARGET_DIR/peers/xfsprogs/unpacked" ]; then
    export POSTRIDER_TEST_XFSPROGS="$CARGO_TARGET_DIR/peers/xfsprogs"
fi
.ci/faketime.sh "$CARGO_TARGET_DIR/peers/faketime"
if [ -e "$CARGO_TARGET_DIR/peers/faketime/unpacked" ]; then
    export POSTRIDER_TEST_FAKETIME="$CARGO_TARGET_DIR/peers/faketime"
fi

# And promtool, which is Prometheus' judge of metrics and rules.
.ci/prometheus.sh "$CARGO_TARGET_DIR/peers/prometheus"
if [ -e "$CARGO_TARGET_DIR/peers/prometheus/unpacked" ]; then
    export POSTRIDER_TEST_PROMETHEUS="$CARGO_TARGET_DIR/peers/prometheus"
fi

# A scan with it takes a minute, so only where it is asked for (`make scan`).
if [ -n "${POSTRIDER_SCAN:-}" ]; then
    .ci/testssl.sh "$CARGO_TARGET_DIR/peers/testssl"
    if [ -e "$CARGO_TARGET_DIR/peers/testssl/unpacked" ]; then
        export POSTRIDER_TEST_TESTSSL="$CARGO_TARGET_DIR/peers/testssl"
    fi
fi

# The same of Chromium; what drives it comes with the Node packages.
.ci/chromium.sh "$CARGO_TARGET_DIR/peers/chromium"
if [ -x "$CARGO_TARGET_DIR/peers/chromium/chromium" ]; then
    export POSTRIDER_TEST_CHROMIUM="$CARGO_TARGET_DIR/peers/chromium/chromium"
fi

status=0
cargo test --locked --no-fail-fast "$@" </dev/null || status=$?
[ -z "$skipped" ] || echo "$skipped" >&2
exit $status
