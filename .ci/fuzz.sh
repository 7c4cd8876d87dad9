#!/bin/sh
# Fuzzes every target of src/fuzzing.rs, or those named, SECONDS_EACH (60) long, on all processors. New inputs
# that reach new code are kept in the target folder; one that breaks something is written there, printed, and
# belongs into tests/fuzz/corpus with its mending.
set -eu
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-60}
folder=$CARGO_TARGET_DIR/fuzz
mkdir -p "$folder"
# Only the crate itself is made to tell where it goes; what it stands on is the same as in the tests.
cat >"$folder/rustc" <<'END'
#!/bin/sh
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on
END
chmod +x "$folder/rustc"
RUSTC_WORKSPACE_WRAPPER=$folder/rustc cargo build --locked --package postrider-fuzz
names=${*:-$(sed -n 's/^    ("\([a-z0-9_]*\)", .*/\1/p' src/fuzzing.rs)}
one() {
    mkdir -p "$folder/corpus/$1" "$folder/found"
    TARGET=$1 "$CARGO_TARGET_DIR/debug/postrider-fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -max_len=65536 -print_final_stats=1 -artifact_prefix="$folder/found/$1-" \
        "$folder/corpus/$1" "tests/fuzz/corpus/$1" >"$folder/$1.log" 2>&1 && status=ok || status=FAULT
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$folder/$1.log")
    reached=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$folder/$1.log" | tail -1)
    printf '%-10s %-6s %12s runs %7s places reached\n' "$1" "$status" "${runs:-?}" "${reached:-?}"
    [ "$status" = ok ] || { grep -m3 -E 'panicked|ERROR|SUMMARY' "$folder/$1.log"; touch "$folder/failed"; }
}
rm -f "$folder/failed"
count=0
for name in $names; do
    one "$name" &
    count=$((count + 1))
    [ $((count % $(nproc))) -ne 0 ] || wait
done
wait
[ ! -e "$folder/failed" ] || { echo "inputs that break something: $folder/found"; exit 1; }
