#!/bin/sh
# The long forms of the programmes that try to break the engine, each printing its counts. Takes an hour or more; the
# short forms are in `cargo test`. Name programmes to run only these: tests/prove.sh simulation power_cut
#
# BACKUP_SEED=n replays one seed of the simulation. Needs root for power_cut and small_disk, strace for kill_sweep.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- cadence_oracle simulation kill_sweep power_cut small_disk many_processes
failed=
for programme in "$@"; do
    BACKUP_PROVE=full cargo test --quiet --release --test "$programme" -- --nocapture --test-threads=1 || failed="$failed $programme"
done
[ -z "$failed" ] || { echo "broken:$failed" >&2; exit 1; }
