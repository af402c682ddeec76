#!/usr/bin/env bash
# Deletes the queued resource with its TPU VMs and everything on their disks, without asking. Those
# that are SUSPENDED or FAILED need it too: they take quota until they are deleted.
#
#   delete.sh --name=NAME --zone=ZONE [flag…]
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

while (($#)); do
  shared_flag "$1" || unknown_flag "$1"
  shift
done
flags_read

delete_queued_resource || failure "$name was not deleted: it may still cost money"
