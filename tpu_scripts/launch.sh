#!/usr/bin/env bash
# Starts `sbp STAGE ARGUMENT…` on all workers of all slices, where it goes on without this machine:
# its output, process id and exit code stay on each worker (see status.sh and logs.sh). Refused, with
# nothing started, where a worker has another commit than this checkout or runs a job already.
#
#   launch.sh --name=NAME --zone=ZONE [flag…] STAGE [ARGUMENT…]
#
#   --env=NAME=VALUE  in the job's environment; may be given several times (it is no place for
#                     secrets: other users of the workers can read it)
#   --commit=COMMIT   run this commit, which is set up there, instead of the checkout's
#   --worker=I        on this worker only (of the slice --slice=I, 0 unless told), for stages that
#                     run once and need no TPU: add --env=JAX_PLATFORMS=cpu
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

environment=()
commit=
worker=all
slice=0
while (($#)); do
  case $1 in
    --env=[A-Za-z_]*=*) environment+=("${1#*=}") ;;
    --env=*) mistake "$1: expected --env=NAME=VALUE" ;;
    --commit=*) commit=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --slice=*) slice=${1#*=} ;;
    -*) shared_flag "$1" || unknown_flag "$1" ;;
    *) break ;;
  esac
  shift
done
flags_read
(($#)) || mistake "no stage named: launch.sh [flag…] STAGE [ARGUMENT…] (train --gin_file=FILE …)"
[[ $worker =~ ^(all|0|[1-9][0-9]*)$ ]] || mistake "--worker=$worker: expected a number from 0, or all"
slice_exists "$slice"
if [[ ! $commit ]]; then
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  commit=$(git -C "$here" rev-parse --verify --quiet HEAD 2>/dev/null) ||
    mistake "$here is not in a git checkout: name what is set up on the workers with --commit=COMMIT"
fi
[[ $commit =~ ^[0-9a-f]{40,64}$ ]] || mistake "--commit=$commit: expected the whole hash"

stage=$1
shift
# By this the worker knows a launch that gcloud repeats after a broken connection.
launch=$(date -u +%Y%m%dT%H%M%SZ)-$$
job=(launch "$commit" "$launch" "${environment[@]}" -- "$stage")

status=0
if [[ $worker == all ]]; then
  commit_stands idle "$commit" || status=$?
  if ((status != 0)); then
    say "nothing was started: mend what the workers say above and launch again"
    exit "$status"
  fi
  on_every_node worker_does "${job[@]}" --coordinator=auto "$@" || status=$?
  if ((status != 0)); then
    say "not started everywhere, and the others wait in vain: stop.sh, then launch again"
    exit "$status"
  fi
else
  worker_does "${nodes[slice]}" "$worker" "${job[@]}" "$@" || status=$?
  if ((status != 0)); then
    say "nothing was started"
    exit $((status == 2 ? 2 : 1))
  fi
fi
