#!/usr/bin/env bash
# Sets up every worker with the current git commit: copies the commit's tree there, makes a Python
# environment from requirements.lock with JAX for TPUs, and sees that all workers have this commit.
# Changes that are not committed are not copied. To be run again after each new commit (seconds,
# where requirements.lock is the same); refused while a job runs.
#
#   setup.sh --name=NAME --zone=ZONE [flag…]
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

while (($#)); do
  shared_flag "$1" || unknown_flag "$1"
  shift
done
flags_read

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(git -C "$here" rev-parse --show-toplevel 2>/dev/null) ||
  mistake "$here is not in a git checkout: set up from a clone, since workers get a commit"
commit=$(git -C "$top" rev-parse --verify --quiet HEAD) ||
  mistake "$top has no commit yet: git commit"
archive=$(git -C "$top" rev-parse --absolute-git-dir)/sbp-$commit-$$.tar.gz
[[ $dry_run ]] || trap 'rm -rf "$scratch" "$archive"' EXIT

# Unpacks the tree beside the old one and hands over to its worker.sh. One at a time: gcloud begins
# again where the connection broke, and the first may still be at it.
# shellcheck disable=SC2016  # the worker's shell expands it
unpack='mkdir -p sbp; exec 8>sbp/setup.lock; flock 8; rm -rf sbp/new; mkdir sbp/new;'
# shellcheck disable=SC2016
unpack+=' tar -xzf "$1" -C sbp/new; exec bash sbp/new/tpu_scripts/worker.sh "$2" setup "$1" "$3"'
set_up() { on_worker "$1" "$2" bash -ec "$unpack" unpack sbp.tar.gz "$1" "$commit"; }

call git -C "$top" archive --format=tar.gz "--output=$archive" "$commit" ||
  failure "the commit's tree could not be packed"
copy_to_every_worker "$archive" sbp.tar.gz ||
  failure "the tree was not copied to all workers: run setup.sh again"
status=0
on_every_node set_up || status=$?
if ((status != 0)); then
  say "not all workers are set up: mend what they say above and run setup.sh again"
  exit "$status"
fi
commit_stands check "$commit" || exit
if [[ $dry_run ]]; then quoted rm -f "$archive"; fi

left=$(git -C "$top" status --porcelain | wc -l)
if [[ ! $dry_run ]] && ((left > 0)); then
  say "note: $((left)) files have changes that are not committed, which the workers do not have"
fi
