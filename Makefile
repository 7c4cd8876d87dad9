# Two commands do everything on a fresh Debian with a Rust toolchain:
#   make run     what the build needs is installed if missing, then built, then the demo runs
#   make test    the same set-up, then the whole suite
# ARGS is handed on: make run ARGS=--exit, make test ARGS="--test cli".

# One folder for all clones, outside of them, so that RocksDB is compiled once.
export CARGO_TARGET_DIR ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/postrider/target
# Where rustup puts cargo, for shells that have not heard of it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
ARGS ?=

.PHONY: run test setup build deb deb-test container-test bench bench-million bench-paths floods faults nightly \
    simulation fuzz mutants scan deny fmt lint

run: setup
	cargo build --locked
	@exec "$(CARGO_TARGET_DIR)/debug/postrider" demo $(ARGS)

test: setup
	.ci/test.sh $(ARGS)

setup:
	@.ci/setup.sh

# The binary to install: $(CARGO_TARGET_DIR)/release/postrider
build: setup
	cargo build --release --locked
	@echo "built $(CARGO_TARGET_DIR)/release/postrider"

# A Debian package of the release binary, or of BINARY, and a test of it in a fresh Debian (as root; fetches that
# Debian once). Both under $(CARGO_TARGET_DIR)/deb.
deb: $(if $(BINARY),,build)
	.ci/deb.sh "$(or $(BINARY),$(CARGO_TARGET_DIR)/release/postrider)" "$(CARGO_TARGET_DIR)/deb"

deb-test: $(if $(BINARY),,build)
	.ci/deb-test.sh "$(or $(BINARY),$(CARGO_TARGET_DIR)/release/postrider)" "$(CARGO_TARGET_DIR)/deb"

# The image that the Containerfile makes, built (but for the compiler) and run; as root, without podman or docker.
container-test: $(if $(BINARY),,build)
	.ci/container-test.sh "$(or $(BINARY),$(CARGO_TARGET_DIR)/release/postrider)" "$(CARGO_TARGET_DIR)/container"

# Speed on loopback, beside Debian's Postfix where that can be had: about ten minutes. Figures and a
# plot under $(CARGO_TARGET_DIR)/bench. The environment makes it shorter or longer: benches/relay.rs.
bench: setup
	@.ci/postfix.sh "$(CARGO_TARGET_DIR)/bench/postfix"
	cargo bench --locked --bench relay
	cargo bench --locked --bench million

# What a queue of a million costs; five to ten minutes, and 6 GB of disk while it runs.
bench-million: setup
	COUNT=1000000 cargo bench --locked --bench million

# The hot paths, with Criterion.
bench-paths: setup
	cargo bench --locked --bench hot_paths -- $(ARGS)

# What a flood costs a good client, memory of an idle connection, a server without files, times of logins: about five
# minutes. The environment makes it shorter or longer: benches/floods.rs.
floods: setup
	cargo bench --locked --bench floods

# The fault programme, as on every change: kills, power cuts, full disks, damage, clocks, networks, floods, attacks. About
# 45 minutes, and as root, for power cuts, full disks and lost packets; with `make test` runs a quick part of each. ARGS="F1 F3"
# chooses rows, POSTRIDER_SEED=N repeats a run, POSTRIDER_BINARY=PATH tests another binary. Ends with the table: each
# fault, what was measured, the verdict; also in faults/programme.json in the target folder.
faults: setup
	@.ci/programme.py day $(ARGS)

# The same with the counts of a night, within BUDGET minutes; what that is too short for is said.
BUDGET ?= 120
nightly: setup
	@.ci/programme.py night $(BUDGET) $(ARGS)

# A hundred thousand whole lives of a server, each decided by its seed (about an hour); `make test` runs the first
# thousand. SEEDS says how many, POSTRIDER_SEED=N repeats one.
simulation: setup
	POSTRIDER_SEEDS=$(or $(SEEDS),100000) cargo test --locked --test simulation -- nothing

# Searches for input that breaks a parser or a dialogue, SECONDS_EACH (60) for each target, all of them (26) or
# those in ARGS. `make test` only replays what is in tests/fuzz/corpus, and what is close to it.
fuzz: setup
	@.ci/fuzz.sh $(ARGS)

# Plants the faults of tests/mutants.toml, one at a time: the harness of each must notice it (as root; fifteen minutes).
mutants: setup
	@.ci/mutants.py $(ARGS)

# Our TLS as sslyze (also part of `make test`) and testssl.sh see it: two minutes.
scan: setup
	POSTRIDER_SCAN=yes .ci/test.sh --test tls_scan -- --nocapture

# Licences, sources and bans of what we depend on, and known holes in it; installs cargo-deny into the target folder.
deny: setup
	@.ci/deny.sh

fmt:
	cargo fmt

lint: setup
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
