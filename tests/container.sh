#!/usr/bin/env bash
# Tests the container as users run it: from a fresh clone, as uid 1000, as another uid, as root with few capabilities.
#
#   tests/container.sh [FORM...]       forms: owner other root damage lost settings; all of them by default
#
#   BUILD=0 tests/container.sh         with the existing image
#
# Needs docker, docker-compose and root (clones must belong to uids 1000 and 1001). It builds the image, uses the names
# of the real docker-compose.yml; so it changes nothing and is skipped if a container or a volume of these names exists.
# It removes at the end what it created.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
repository=$PWD
export COMPOSE_PROJECT_NAME=backup-manager-test DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
unset BACKUP_UID BACKUP_GID COMPOSE_FILE

skip() { echo "skipped: container tests: $*"; exit 0; }
command -v docker >/dev/null && docker info >/dev/null 2>&1 || skip "no container engine answers"
if command -v docker-compose >/dev/null; then compose=(docker-compose); else compose=(docker compose); fi
"${compose[@]}" version >/dev/null 2>&1 || skip "no docker-compose"
[[ $(id -u) == 0 ]] || skip "clones for several uids need root"
docker container inspect backup-system >/dev/null 2>&1 && skip "a container backup-system exists; it is not touched"
docker volume inspect backup-system-database >/dev/null 2>&1 && skip "a volume backup-system-database exists; it is not touched"
git diff --quiet HEAD -- . 2>/dev/null || echo "note: the last commit is tested, without uncommitted changes"

work=$(mktemp -d)
chmod 755 "$work"
checks=0 failures=0 form=build
# Removes what the tests started, and nothing else.
clean_up() {
  cd "$repository" || return
  docker rm -f backup-system >/dev/null 2>&1
  docker volume rm -f backup-system-database >/dev/null 2>&1
  docker network rm "${COMPOSE_PROJECT_NAME}_default" >/dev/null 2>&1
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

dc() { "${compose[@]}" "$@" </dev/null; }
bm() { dc exec -T backup-system backup-manager "$@"; }
say() { printf -- '-- %s: %s (after %d s)\n' "$form" "$*" "$SECONDS"; }
pass() { checks=$((checks + 1)); }
fail() {
  checks=$((checks + 1)) failures=$((failures + 1))
  printf 'FAILED: %s: %s\n' "$form" "$1"
  printf '%s\n' "${2-}" | tail -15 | sed 's/^/    /'
}

# expect WHAT CODE PATTERN COMMAND...: the command exits with CODE and prints PATTERN (on either stream).
expect() {
  local what=$1 code=$2 pattern=$3 output got
  shift 3
  output=$("$@" 2>&1)
  got=$?
  if [[ $got != "$code" ]]; then
    fail "$what: exit code $got instead of $code" "$output"
  elif ! grep -qE -- "$pattern" <<<"$output"; then
    fail "$what: does not print \"$pattern\"" "$output"
  else
    pass
  fi
}

# eventually WHAT SECONDS COMMAND...: the command succeeds in time.
eventually() {
  local what=$1 until=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS > until)); then
      fail "$what: not in time" "$(docker ps -a --filter name=backup-system 2>&1; dc logs --tail 8 2>&1)"
      return 1
    fi
    sleep 0.3
  done
  pass
}

health() { docker inspect -f '{{.State.Health.Status}}' backup-system; }
is_health() { [[ $(health) == "$1" ]]; }
listed() { bm list | grep -q "$1"; }
logged() { dc logs 2>&1 | grep -q "$1"; }
verb_exists() { bm "$1" --help >/dev/null 2>&1; }
milliseconds() { date +%s%3N; }

# fresh_clone UID: makes an unchanged clone that belongs to UID, and changes into it.
fresh_clone() {
  cd "$work" || exit 1
  rm -rf "$work/clone"
  git clone -q --no-hardlinks "$repository" "$work/clone" || exit 1
  chown -R "$1:$1" "$work/clone"
  cd "$work/clone" || exit 1
}

# Fills the source with files to compare later.
fill_source() {
  mkdir -p data/documents data/large
  echo "letter of $(id -un)" >data/documents/letter.txt
  ln -s letter.txt data/documents/link
  # 24 MB of text: seconds of work at the highest level of zstd.
  [[ -e data/large/text ]] || seq 1 3200000 >data/large/text
  chown -R "$1:$1" data
}

up_and_healthy() {
  local started
  started=$(milliseconds)
  expect "up" 0 '.' dc up -d
  eventually "healthy" 45 is_health healthy
  say "healthy after $(($(milliseconds) - started)) ms"
}

down() { dc down -t 60 >/dev/null 2>&1; }
lose_volume() { dc down -v -t 60 >/dev/null 2>&1; }

test_build() {
  expect "compose file" 0 'backup-system' dc config
  if [[ ${BUILD:-1} == 0 ]] || dc build >"$work/build.log" 2>&1; then pass; else
    fail "the image does not build" "$(cat "$work/build.log")"
    exit 1
  fi
  local size
  size=$(docker image inspect -f '{{.Size}}' backup-manager)
  echo "image: $((size / 1000000)) MB, of which $(($(docker run --rm --entrypoint stat backup-manager -c %s /usr/local/bin/backup-manager) / 1000000)) MB the program"
  expect "user" 0 '^backupuser$' docker run --rm --entrypoint whoami backup-manager
  expect "uid" 0 '^1000$' docker run --rm --entrypoint id backup-manager -u
  expect "a verb after docker run" 10 'there is no database in /app/db' docker run --rm backup-manager list
  expect "docker run with a volume" 0 'docs;09:00' docker run --rm --tmpfs /app/db backup-manager create --plain 'data/docs;09:00;docs'
  expect "help" 0 'restore|run' docker run --rm backup-manager --help
  expect "an unknown setting stops serve" 2 'BACKUP_COMPRES is set, but there is no such setting' \
    docker run --rm -e BACKUP_COMPRES=zstd backup-manager
  expect "variables that an orchestrator injects do not" 1 'BACKUP_NICE|read-only|not writable|missing' \
    docker run --rm --read-only -e BACKUP_SYSTEM_SERVICE_HOST=10.0.0.1 -e BACKUP_PORT_80_TCP=tcp://10.0.0.1 backup-manager
  printf 'gzip:3\n' >"$work/secret"
  chmod 644 "$work/secret"
  expect "a setting in a file" 0 'compress.*gzip:3' docker run --rm --tmpfs /app/db --tmpfs /app/logs \
    -v "$work/secret:/run/secrets/compress:ro" -e BACKUP_COMPRESS_FILE=/run/secrets/compress \
    --entrypoint sh backup-manager -c 'backup-manager create -q "data/docs;09:00;docs" && backup-manager config compress'
}

# The verbs of the old deployment, each in the running container.
test_verbs() {
  expect "create" 0 'docs_backup' bm create "data/documents;14:00;docs_backup"
  expect "list" 0 '0: data/documents;14:00;docs_backup' bm list
  expect "start reports that it runs" 0 'already runs as process 1, the main process' bm start
  expect "stop refuses" 1 'docker-compose stop.*pause --all' bm stop
  expect "run" 0 'succeeded' bm run docs_backup
  expect "history" 0 'docs_backup' bm history
  expect "backups" 0 'docs_backup.tar' bm backups
  expect "status" 0 'docs_backup' bm status
  expect "status --service" 0 'alive' bm status --service
  expect "the archive on the host" 0 'documents/letter.txt' tar -tf backups/docs_backup.tar
  expect "logs, service" 0 'Info serving' cat logs/backup_service.log
  expect "logs, commands" 0 'Instruction list' cat logs/backup_manager.log
  expect "logs of the container" 0 'Info serving' dc logs
  expect "ls" 0 'docs_backup.tar' ls -la backups/
  expect "inside: cat" 0 'Info serving' dc exec -T backup-system cat logs/backup_service.log
  expect "inside: ls" 0 'docs_backup.tar' dc exec -T backup-system ls -la backups/
  expect "the time zone" 0 'Europe/Paris' bm status
  bm export >"$work/exported" 2>/dev/null
  expect "export" 0 '^data/documents;14:00;docs_backup$' cat "$work/exported"
  # tail -F follows a plain file, which grows.
  expect "a line a run" 0 'Instruction run' tail -n 50 logs/backup_manager.log
  if verb_exists restore; then
    # Root without CAP_CHOWN restores everything except the owners, and reports it.
    expect "restore" "$([[ $form == root ]] && echo 3 || echo 0)" '.' bm restore docs_backup --to restore/
    expect "the restored file" 0 'letter of' cat restore/documents/letter.txt
  else
    echo "skipped: container tests: restore does not exist yet"
  fi
}

test_scheduled() {
  expect "create by cron" 0 'often' bm create data/documents --name often --cron '* * * * * *'
  eventually "a scheduled run" 20 sh -c "ls backups/often/*.tar"
  expect "delete" 0 '.' bm delete often
}

test_text_file() {
  # In place: the file itself is mounted, so a new file under its name would not be visible inside.
  echo 'data/documents;03:15;from_file' >>backup_schedules.txt
  eventually "the text file is followed" 20 listed from_file
}

# The service is killed with an archive half written.
test_kill() {
  expect "create large" 0 'large' bm create data/large --name large --cron '* * * * * *' --compress zstd:19
  eventually "a half-written archive" 30 sh -c 'ls -A backups/large | grep -q part'
  docker kill -s KILL backup-system >/dev/null
  expect "killed in the middle" 0 'part' ls -A backups/large
  expect "started again" 0 '.' dc up -d
  eventually "back" 30 bm status --service
  expect "edit" 0 '.' bm edit large --compress none
  eventually "the run is recovered" 60 sh -c 'test -e backups/large.tar'
  expect "pause" 0 '.' bm pause large
  expect "history shows the run" 0 'large.*succeeded|succeeded.*large' bm history large
  expect "the archive is complete" 0 'large/text' tar -tf backups/large.tar
}

# A stop while a run is under way: it may finish, or is cancelled and queued again.
test_drain() {
  local started=$SECONDS
  expect "edit for a long run" 0 '.' bm edit large --compress zstd:19
  bm resume large >/dev/null 2>&1
  eventually "a run under way" 30 sh -c 'ls -A backups/large | grep -q part'
  expect "stop" 0 '.' dc stop
  say "stopped after $((SECONDS - started)) s"
  expect "it drained" 0 'Info stopped' tail -n 3 logs/backup_service.log
  expect "exited by itself" 0 '^0$' docker inspect -f '{{.State.ExitCode}}' backup-system
  expect "no temporary file" 1 '^$' sh -c 'ls -A backups/large | grep part'
  expect "start" 0 '.' dc start
  eventually "back" 30 bm status --service
  expect "delete large" 0 '.' bm delete large
}

test_down_and_up() {
  local before
  before=$(bm history --plain | wc -l)
  down
  expect "up again" 0 '.' dc up -d
  eventually "back" 30 bm status --service
  expect "schedules are kept" 0 'docs_backup' bm list
  if (($(bm history --plain | wc -l) >= before)); then pass; else fail "history is not kept"; fi
}

test_health() {
  eventually "healthy before" 60 is_health healthy
  dc exec -T backup-system chmod 0400 /app/db/backup.db /app/db/backup.db-wal /app/db/backup.db-shm >/dev/null 2>&1
  eventually "unhealthy while the store cannot be written" 60 is_health unhealthy
  dc exec -T backup-system chmod 0600 /app/db/backup.db /app/db/backup.db-wal /app/db/backup.db-shm >/dev/null 2>&1
  eventually "healthy again" 40 is_health healthy
}

test_lost_volume() {
  lose_volume
  expect "up with a new volume" 0 '.' dc up -d
  eventually "unhealthy: the archives belong to another database" 90 is_health unhealthy
  expect "status reports why" 1 'belongs to another database|rescan' bm status
  if verb_exists rescan && bm rescan --help 2>&1 | grep -q from-copy; then
    expect "rescan refuses while the service runs" 11 'stop' bm rescan --from-copy
    dc stop >/dev/null 2>&1
    expect "rescan --from-copy" 0 'restored the copy' dc run --rm backup-system rescan --from-copy
    dc start >/dev/null 2>&1
    eventually "healthy again" 60 is_health healthy
    expect "the schedules are back" 0 'docs_backup' bm list
    expect "the archives are back" 0 'docs_backup' bm backups
  else
    echo "skipped: container tests: rescan --from-copy does not exist yet"
  fi
}

show_memory() {
  local pid
  pid=$(docker inspect -f '{{.State.Pid}}' backup-system)
  awk '/^VmRSS/ { printf "idle: %.1f MB resident\n", $2 / 1024 }' "/proc/$pid/status"
}

form_owner() {
  fresh_clone 1000
  expect "the folders are in the clone" 0 'gitkeep' ls -A data backups logs restore
  up_and_healthy
  show_memory
  fill_source 1000
  test_verbs
  test_scheduled
  test_text_file
  test_kill
  test_drain
  test_down_and_up
  test_health
  # git ignores the files in the folders.
  expect "git sees no change except the text file" 0 '^ M backup_schedules.txt$' git -c safe.directory='*' status --porcelain
  lose_volume
}

# The volume of the database is lost; the archives and the files beside them are kept.
form_lost() {
  fresh_clone 1000
  up_and_healthy
  fill_source 1000
  expect "create" 0 '.' bm create "data/documents;14:00;docs_backup"
  expect "run" 0 'succeeded' bm run docs_backup
  down
  up_and_healthy
  test_lost_volume
  lose_volume
}

form_other() {
  fresh_clone 1001
  printf 'BACKUP_UID=1001\nBACKUP_GID=1001\n' >.env
  up_and_healthy
  fill_source 1001
  expect "it runs as that uid" 0 '^1001$' dc exec -T backup-system id -u
  test_verbs
  test_scheduled
  test_down_and_up
  expect "archives belong to it" 0 '^1001$' stat -Lc %u backups/docs_backup.tar
  lose_volume
}

form_root() {
  fresh_clone 1000
  printf 'COMPOSE_FILE=docker-compose.yml:docker-compose.root.yml\n' >.env
  up_and_healthy
  fill_source 1000
  echo "only its owner may read this" >data/documents/secret
  chown 4321:4321 data/documents/secret
  chmod 600 data/documents/secret
  expect "few capabilities" 0 'CapEff:[[:space:]]*0000000000000006' dc exec -T backup-system grep CapEff /proc/1/status
  test_verbs
  test_scheduled
  expect "the archive holds the file of another owner" 0 'documents/secret' tar -tf backups/docs_backup.tar
  if verb_exists restore; then
    # With owners: by root with the capabilities of a plain container, so without the override file.
    rm -rf restore/documents
    expect "restore with owners" 0 '.' env COMPOSE_FILE=docker-compose.yml \
      "${compose[@]}" run --rm --user 0 backup-system restore docs_backup --to restore/
    expect "the owner is restored" 0 '^4321$' stat -c %u restore/documents/secret
  fi
  test_down_and_up
  lose_volume
}

# A message about a folder that cannot be used names the folder, the uid and a command, and the command repairs it.
form_damage() {
  fresh_clone 0
  dc up -d >/dev/null 2>&1
  eventually "reports the owner of the folder" 20 logged 'not writable for uid 1000'
  expect "names the folder" 0 'the log folder /app/logs is not writable for uid 1000: it belongs to uid 0' dc logs
  expect "names the command" 0 'chown backup-system -R 1000 /app/logs' dc logs
  for folder in logs backups restore; do
    expect "the command itself" 0 '^' dc run --rm --user 0 --entrypoint chown backup-system -R 1000 /app/$folder
  done
  expect "up" 0 '.' dc up -d
  eventually "healthy after it" 60 is_health healthy
  # A folder in place of the text file, which was imported before, is an import error; the service goes on.
  down
  rm backup_schedules.txt
  expect "up without the text file" 0 '.' dc up -d
  eventually "serves nevertheless" 60 is_health healthy
  expect "the log reports it" 0 'Error the text file backup_schedules.txt is not a regular file' dc logs
  # Archives on a read-only mount.
  down
  printf 'services:\n  backup-system:\n    volumes:\n      - ./backups:/app/backups:ro\n' >docker-compose.override.yml
  expect "up with read-only archives" 0 '.' dc up -d
  eventually "unhealthy" 90 is_health unhealthy
  expect "the log reports it" 0 'the archive folder /app/backups is on a read-only file system' dc logs
  lose_volume
}

# A container that gets only a settings file, in a folder that is mounted, and no text file and no commands.
form_settings() {
  fresh_clone 1000
  mkdir config
  printf '[schedule.docs]\nsource = "data/documents"\nat = "02:30"\n' >config/backup.toml
  printf 'services:\n  backup-system:\n    command: ["serve"]\n    environment:\n      BACKUP_CONFIG: /app/config/backup.toml\n    volumes:\n      - ./config:/app/config:ro\n' >docker-compose.override.yml
  fill_source 1000
  up_and_healthy
  eventually "the file is applied" 20 listed docs
  expect "the schedule is managed by the file" 2 'docs is managed by /app/config/backup.toml:1' bm edit docs --at 03:00
  expect "apply of the file of the environment changes nothing" 0 'nothing to change' bm apply
  expect "run" 0 'succeeded' bm run docs
  # As an editor does: a new file under the name.
  sed 's/02:30/04:45/' config/backup.toml >config/new && mv config/new config/backup.toml
  eventually "a new file is followed" 30 listed 04:45
  printf '[schedule.docs]\nsourse = "data"\n' >config/backup.toml
  eventually "a bad file is reported" 30 sh -c "docker exec backup-system backup-manager status | grep -q 'did you mean source'"
  expect "and changes nothing" 0 '04:45' bm list
  lose_volume
}

test_build
forms=("$@")
((${#forms[@]})) || forms=(owner other root damage lost settings)
for form in "${forms[@]}"; do
  say "starts"
  "form_$form"
done
form=all
say "$checks checks, $failures failed"
((failures == 0))
