#!/usr/bin/env bash
# Prints the end of the last job's output from one worker.
#
#   logs.sh --name=NAME --zone=ZONE [flag…]
#
#   --worker=I      which worker, 0 unless told
#   --slice=I       of which slice, 0 unless told
#   --lines=N       how many lines, 50 unless told
#   --follow, -f    go on printing until the job ends
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

worker=0
slice=0
lines=50
follow=()
while (($#)); do
  case $1 in
    --worker=*) worker=${1#*=} ;;
    --slice=*) slice=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --follow | -f) follow=(follow) ;;
    *) shared_flag "$1" || unknown_flag "$1" ;;
  esac
  shift
done
flags_read
[[ $worker =~ ^(0|[1-9][0-9]*)$ ]] || mistake "--worker=$worker: expected a number from 0"
slice_exists "$slice"
[[ $lines =~ ^[0-9]+$ ]] || mistake "--lines=$lines: expected a number"

worker_does "${nodes[slice]}" "$worker" logs "$lines" "${follow[@]}" || {
  status=$?
  say "the log could not be read"
  exit $((status == 2 ? 2 : 1))
}
