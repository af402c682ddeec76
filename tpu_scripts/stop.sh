#!/usr/bin/env bash
# Ends the job on all workers: asks it to stop, and after a grace period ends what is left of it.
# Only the processes of that job are touched.
#
#   stop.sh --name=NAME --zone=ZONE [flag…]
#
#   --grace=SECONDS  how long it may take to stop by itself, 30 unless told
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

grace=30
while (($#)); do
  case $1 in
    --grace=*) grace=${1#*=} ;;
    *) shared_flag "$1" || unknown_flag "$1" ;;
  esac
  shift
done
flags_read
[[ $grace =~ ^[0-9]+$ ]] || mistake "--grace=$grace: expected a number of seconds"

on_every_node worker_does stop "$grace" ||
  failure "not all workers answered: status.sh shows which run on"
