#!/bin/sh
# The long forms of the stress tests, each printing its counts. Takes an hour or more; the short forms are part of
# `cargo test`. Name tests to run only these: tests/prove.sh simulation power_cut
#
# BACKUP_SEED=n replays one seed of the simulation or of the series of reuse. Needs root for power_cut and small_disk,
# strace for kill_sweep.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- cadence_oracle simulation reuse kill_sweep power_cut small_disk many_processes
failed=
for test in "$@"; do
    BACKUP_STRESS=full cargo test --quiet --release --test "$test" -- --nocapture --test-threads=1 || failed="$failed $test"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
