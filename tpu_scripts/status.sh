#!/usr/bin/env bash
# Shows the state of the queued resource and, when it is ACTIVE, what each worker runs or how its
# last job ended.
#
#   status.sh --name=NAME --zone=ZONE [flag…]
#
#   --wait[=SECONDS]  ask again every so many seconds (30) until it is ACTIVE; fails where that
#                     will not come
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

wait_seconds=
while (($#)); do
  case $1 in
    --wait) wait_seconds=30 ;;
    --wait=*)
      wait_seconds=${1#*=}
      [[ $wait_seconds =~ ^[0-9]+$ ]] || mistake "$1: expected a number of seconds"
      ;;
    *) shared_flag "$1" || unknown_flag "$1" ;;
  esac
  shift
done
flags_read

if [[ $dry_run ]]; then
  queued_resource_state
  on_every_node worker_does status
  exit
fi

shown=
while :; do
  answer=$(queued_resource_state) || failure "the state of $name could not be read"
  IFS=$'\t' read -r state reason <<<"$answer" || true
  if [[ $state != "$shown" ]]; then printf '%s %s%s\n' "$name" "$state" "${reason:+: $reason}"; fi
  shown=$state
  case $state in
    ACTIVE) break ;;
    SUSPENDING | SUSPENDED)
      say "it was taken away and will not come back: delete.sh, create.sh, setup.sh, launch.sh again"
      ;;
    DELETING) say "it is being deleted" ;;
    FAILED) say "it will not come, and takes quota until it is gone: delete.sh" ;;
    *) # on its way
      [[ $wait_seconds ]] || exit 0
      sleep "$wait_seconds"
      continue
      ;;
  esac
  [[ $wait_seconds ]] && exit 1
  exit 0
done
# While waiting for a TPU that nobody could have set up yet, its workers have nothing to say.
[[ $wait_seconds ]] && exit
on_every_node worker_does status || failure "not all workers answered"
