#!/usr/bin/env bash
# Tests stopping and starting containers with a real engine: what is stopped, killed runs, recreated containers.
#
#   tests/stopping.sh [PROGRAM]      default: target/debug/backup-manager
#
# Needs docker and the image debian:bookworm-slim; without an engine it is skipped. It removes what it created.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
program=$(realpath "${1:-target/debug/backup-manager}")
skip() { echo "skipped: stopping containers: $*"; exit 0; }
command -v docker >/dev/null && docker info >/dev/null 2>&1 || skip "no container engine answers"
docker image inspect debian:bookworm-slim >/dev/null 2>&1 || skip "no image debian:bookworm-slim"

home=$(mktemp -d)
prefix=bm-stopping-$$
checks=0 failures=0
clean_up() {
  docker ps -aq --filter "name=$prefix" | xargs -r docker rm -f >/dev/null 2>&1
  rm -rf "$home"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
bm() { (cd "$home" && "$program" "$@"); }
check() {
  local what=$1
  shift
  checks=$((checks + 1))
  if ! "$@"; then
    failures=$((failures + 1))
    echo "FAILED: $what"
  fi
}
is() { [[ $(docker inspect -f '{{.State.Status}}' "$prefix-$1" 2>/dev/null) == "$2" ]]; }

# start NAME [OPTION...]: a container that writes a line each 10 ms, and ends at SIGTERM.
start() {
  local name=$1
  shift
  docker run -d --init --name "$prefix-$name" -v "$home/data:/data" --label backup-manager.schedule=data "$@" \
    debian:bookworm-slim sh -c "while :; do echo \$((n += 1)) >>/data/$name; sleep 0.01; done" >/dev/null
}
compose() { echo --label com.docker.compose.project="$prefix" --label com.docker.compose.service="$1" \
  --label com.docker.compose.container-number=1 --label com.docker.compose.depends_on="$2"; }

mkdir -p "$home/data" "$home/other"
echo text >"$home/other/file"
bm create data --name data --at 03:00 --containers -q
bm create other --name other --at 03:00 -q
stop=(--label backup-manager.stop=true)
# shellcheck disable=SC2046
start db "${stop[@]}" $(compose db "")
# shellcheck disable=SC2046
start app "${stop[@]}" $(compose app db:service_started:false)
start plain
start off "${stop[@]}"
docker stop -t 0 "$prefix-off" >/dev/null

output=$(bm run data 2>&1)
check "the run succeeds or finds only the file that goes on growing: $output" grep -qE 'succeeded|incomplete' <<<"$output"
for name in app db plain; do check "$name runs after the run" is "$name" running; done
check "off stays stopped" is off exited
started() { docker inspect -f '{{.State.StartedAt}}' "$prefix-$1"; }
check "db is started before app" test "$(started db)" '<' "$(started app)"
# A file of a stopped container does not grow while it is read: the last line is whole, and nothing was changed.
tar -xf "$home/backups/data.tar" -C "$home/other" data/app 2>/dev/null
check "the file of a stopped container ends in a whole line" sh -c "tail -c1 '$home/other/data/app' | grep -q '^$'"

# --rm: refused by name before anything is stopped.
start rm --rm "${stop[@]}"
before=$(started app)
output=$(bm run data 2>&1)
check "a container with --rm is refused by name" grep -q "$prefix-rm cannot be stopped" <<<"$output"
check "nothing was stopped" test "$(started app)" = "$before"
check "the container with --rm runs" is rm running
docker rm -f "$prefix-rm" >/dev/null

bm create --source-command 'cat /etc/debian_version | head -1' --source-name version --source-container "$prefix-db" \
  --name version --at 03:00 -q
bm run version >/dev/null 2>&1
check "what a command in a container prints is archived" \
  test "$(bm cat version version)" = "$(docker exec "$prefix-db" head -1 /etc/debian_version)"

# Killed at several moments: whoever comes next starts what was stopped.
kills=0
for delay in 0.05 0.1 0.2 0.3 0.4 0.6 0.8 1.0; do
  bm run data >/dev/null 2>&1 &
  sleep "$delay"
  pkill -KILL -P $! 2>/dev/null
  wait $! 2>/dev/null
  kills=$((kills + 1))
  bm run other >/dev/null 2>&1
  # A stop that was under way may end later; the next command starts the container then.
  for _ in $(seq 60); do
    is app running && is db running && break
    sleep 1
    bm run other >/dev/null 2>&1
  done
  for name in app db; do check "$name runs after a kill at $delay s" is "$name" running; done
  check "off stays stopped after a kill at $delay s" is off exited
done

bm run data >/dev/null 2>&1
for name in app db; do check "$name runs at the end" is "$name" running; done
echo "stopping containers: $checks checks, $failures failed, $kills kills"
((failures == 0))
