#!/usr/bin/env bash
# What happens on one worker. The scripts beside it run it over ssh, from the home directory:
#
#   bash worker.sh NODE setup ARCHIVE COMMIT     (the archive is unpacked in ~/sbp/new)
#   bash worker.sh NODE check COMMIT | idle COMMIT
#   bash worker.sh NODE launch COMMIT LAUNCH [NAME=VALUE…] -- STAGE [ARGUMENT…]
#   bash worker.sh NODE status | logs LINES [follow] | stop SECONDS
#
# Under ~/sbp lie
#   tree/, venv/, installed   the code, its environment, and the commit that they are of
#   runs/                     what is runs/ in the tree, kept from one set-up to the next
#   compile-cache/            compiled programs: without them a restart costs a minute and more
#   jobs/LAUNCH/              command, log, pid and exit_code of each job; job is the last of them
#   lock                      held by the job's processes: free exactly when none of them lives, after
#                             a restart of the machine too, which a process id could not tell
# Every verb may be run twice: gcloud begins again where a connection broke.
# Exit codes: 0, 1 it failed, 2 a mistake in what was asked. Never 255, which ssh uses itself.

set -euo pipefail

root=$HOME/sbp
tpu_lock=${SBP_LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}

say() { printf '%s %s: %s\n' "$node" "$HOSTNAME" "$1"; }
mistake() { say "$1" >&2; exit 2; }
failure() { say "$1" >&2; exit 1; }

busy() { ! flock --shared --nonblock "$root/lock" true; }

# "process 123, launch 20260102T030405Z-6"
job_name() {
  local name
  name=$(readlink "$root/job") || name=unknown
  printf 'process %s, launch %s' "$(cat "$root/job/pid" 2>/dev/null || echo unknown)" "${name##*/}"
}

refuse_if_busy() {
  if busy; then mistake "a job runs already ($(job_name)): wait for its end, or stop.sh"; fi
}

# ---- Set-up --------------------------------------------------------------------------------------

# git writes the commit into the archive's first header.
commit_of() {
  { gzip -dc "$1" 2>/dev/null || true; } | head -c 2048 | tr -d '\0' |
    sed -n 's/.*[0-9] comment=\([0-9a-f]\{40,64\}\).*/\1/p' | head -n 1
}

setup() {
  local archive=$1 commit=$2 found
  refuse_if_busy
  found=$(commit_of "$archive")
  [[ $found == "$commit" ]] || failure "$archive holds commit '$found' instead of $commit"
  rm -f "$root/installed"
  rm -rf "$root/tree"
  mv "$root/new" "$root/tree"
  mkdir -p "$root/runs"
  ln -s ../runs "$root/tree/runs"
  cd "$root/tree"
  environment
  printf '%s\n' "$commit" >"$root/installed.new"
  mv "$root/installed.new" "$root/installed"
  say "commit $commit is set up"
}

# The virtual environment of requirements.lock, made anew when that changes, and in it this tree.
environment() {
  local uv jax_version python install
  uv=$(find_uv)
  install=("$uv" pip install --quiet --python "$root/venv/bin/python")
  if ! cmp -s requirements.lock "$root/venv/requirements.lock"; then
    python=$(<.python-version)
    jax_version=$(sed -n 's/^jax==\([^ ;\\]*\).*/\1/p' requirements.lock)
    [[ $jax_version ]] || failure "requirements.lock names no version of jax"
    rm -rf "$root/venv"
    "$uv" venv --quiet --python "$python" "$root/venv" || failure "no environment with Python $python"
    "${install[@]}" --require-hashes -r requirements.lock ||
      failure "requirements.lock could not be installed"
    "${install[@]}" "jax[tpu]==$jax_version" ||
      failure "JAX $jax_version for TPUs could not be installed"
    cp requirements.lock "$root/venv/requirements.lock"  # last: it says that the rest is complete
  fi
  # Editable: an installed copy could be older than the tree.
  "${install[@]}" --no-deps --no-build-isolation --editable . ||
    failure "the project could not be installed"
}

# The images' own Python is too old for the project, but it can install uv, which brings another.
find_uv() {
  local uv
  for uv in "$HOME/.local/bin/uv" "$(command -v uv || true)"; do
    [[ -x $uv ]] && { printf '%s\n' "$uv"; return; }
  done
  python3 -m pip install --quiet --user uv >&2 ||
    failure "uv could not be installed with pip: is python3-pip there, and the network?"
  printf '%s\n' "$HOME/.local/bin/uv"
}

check() {
  local found
  found=$(cat "$root/installed" 2>/dev/null) || mistake "not set up, or not to the end: run setup.sh"
  [[ $found == "$1" ]] ||
    mistake "commit $found is set up, not $1: run setup.sh, or launch with --commit=$found"
  say "commit $1 stands"
}

# ---- Jobs ----------------------------------------------------------------------------------------

idle() {
  check "$1"
  refuse_if_busy
}

launch() {
  local commit=$1 job=$root/jobs/$2 variables=() try
  shift 2
  while [[ $1 != -- ]]; do variables+=("$1"); shift; done
  shift
  check "$commit" >/dev/null
  if [[ -e $job ]]; then
    say "this launch has started it already"
    return
  fi
  # Waits a moment: whoever asks for the status holds the lock for an instant.
  exec 9>>"$root/lock"
  flock --timeout 1 9 || mistake "a job runs already ($(job_name)): wait for its end, or stop.sh"
  free_tpu
  mkdir -p "$job" "$root/compile-cache"
  printf ' %q' sbp "$@" >"$job/command"
  ln -sfn "jobs/${job##*/}" "$root/job"
  # File 9 goes to the job, and with it the lock.
  setsid bash "$0" "$node" supervise "$job" \
    env "JAX_COMPILATION_CACHE_DIR=$root/compile-cache" PYTHONUNBUFFERED=1 "${variables[@]}" \
    "$root/venv/bin/sbp" "$@" </dev/null >"$job/log" 2>&1 &
  for ((try = 0; try < 100; try++)); do
    if [[ -s $job/pid ]]; then
      say "started ($(job_name))"
      return
    fi
    sleep 0.1
  done
  failure "it did not start within 10 s: see logs.sh"
}

# JOB COMMAND…: runs it in the tree and leaves its process group and exit code.
supervise() {
  local job=$1 code=0
  shift
  trap : TERM INT HUP  # the signal that ends the command must not end what notes its exit code
  cd "$root/tree"
  printf '%s\n' $$ >"$job/pid.new"
  mv "$job/pid.new" "$job/pid"
  "$@" || code=$?
  note_exit_code "$job" "$code"
}

note_exit_code() {
  printf '%s\n' "$2" >"$1/exit_code.new"
  mv "$1/exit_code.new" "$1/exit_code"
}

# A process that died leaves libtpu's lock file behind, which then keeps the next one off the TPU.
free_tpu() {
  local as_owner=() link pid
  [[ -e $tpu_lock ]] || return 0
  # Another user's open files, and another user's file in /tmp, are for root only.
  ((EUID == 0)) || ! sudo -n true 2>/dev/null || as_owner=(sudo -n)
  link=$("${as_owner[@]}" find /proc/[0-9]*/fd -lname "$tpu_lock" -print -quit 2>/dev/null) || true
  if [[ $link ]]; then
    pid=${link#/proc/}
    failure "the TPU is in use by process ${pid%%/*}, which no launch of ours started: end it first"
  fi
  "${as_owner[@]}" rm -f "$tpu_lock" || failure "$tpu_lock of a dead process cannot be removed"
}

status() {
  local commit
  commit=$(cat "$root/installed" 2>/dev/null) || commit="none to the end"
  if [[ ! -e $root/job ]]; then
    say "no job yet (commit set up: $commit)"
  elif busy; then
    say "running ($(job_name)):$(<"$root/job/command")"
  elif [[ -e $root/job/exit_code ]]; then
    say "ended with exit code $(<"$root/job/exit_code") ($(job_name))"
  else
    say "ended without an exit code: killed, or the machine was restarted ($(job_name))"
  fi
}

logs() {
  local lines=$1 following=()
  [[ -e $root/job ]] || mistake "no job yet: launch.sh"
  if [[ ${2:-} == follow ]] && busy; then
    following=(--follow "--pid=$(<"$root/job/pid")")
  fi
  exec tail --lines="$lines" "${following[@]}" "$root/job/log"
}

stop() {
  local try pid
  if [[ ! -e $root/job ]] || ! busy; then
    say "no job runs"
    return
  fi
  pid=$(<"$root/job/pid")
  kill -TERM -- "-$pid" 2>/dev/null || true  # it may have ended this instant
  for ((try = 0; try < $1 * 5; try++)); do
    busy || { say "stopped"; return; }
    sleep 0.2
  done
  kill -KILL -- "-$pid" 2>/dev/null || true
  flock --shared --timeout 10 "$root/lock" true || failure "process group $pid cannot be killed"
  note_exit_code "$root/job" 137
  say "killed, since it did not stop within $1 s"
}

# ---- Start ---------------------------------------------------------------------------------------

main() {
  node=$1
  local verb=$2
  shift 2
  mkdir -p "$root"
  case $verb in
    setup | check | idle | launch | supervise | status | logs | stop) "$verb" "$@" ;;
    *) mistake "unknown verb $verb: this worker has another commit, run setup.sh" ;;
  esac
}

main "$@"
