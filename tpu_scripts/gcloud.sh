# shellcheck shell=bash
# Everything that talks to gcloud: the flags that all scripts share, the command lines, and what
# their failures mean. Sourced by the scripts beside it, which name no gcloud command themselves:
# where Google serves TPUs in another way (Compute Engine, GKE), this is the file to replace.

set -euo pipefail

script=${0##*/}

say() { printf '%s: %s\n' "$script" "$1" >&2; }
mistake() { say "$1"; exit 2; }
failure() { say "$1"; exit 1; }

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  mistake "bash 4.4 or newer is needed, this is $BASH_VERSION: install one and put it first on PATH"
fi

# ---- Flags ---------------------------------------------------------------------------------------

name=${SBP_TPU_NAME:-}
zone=${SBP_TPU_ZONE:-}
project=${SBP_TPU_PROJECT:-}
slices=${SBP_TPU_SLICES:-1}
dry_run=
where=()                  # --zone and --project, on every command
nodes=()                  # the TPU VMs: one a slice
tpu_vm=(compute tpus tpu-vm)
connection=()             # flags of gcloud's ssh and scp
scratch=                  # a directory that goes when the script ends

# The head of the script that was called is its help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  cat <<'END'
Flags of every script:
  --name=NAME           the queued resource; its TPU VM has the same name, with several slices
                        NAME-0, NAME-1, …  (or SBP_TPU_NAME)
  --zone=ZONE           (or SBP_TPU_ZONE)
  --project=PROJECT     (or SBP_TPU_PROJECT; without either, gcloud's own setting)
  --slices=N            how many slices, 1 unless told (or SBP_TPU_SLICES)
  --internal-ip         reach the workers by their internal addresses
  --tunnel-through-iap  reach them through Google's tunnel (gcloud alpha)
  --batch-size=N        at most N connections at a time for each slice (gcloud alpha)
  --dry-run             print the commands, ready to be pasted; run nothing
  --help                this text
Exit codes: 0 done, 1 it failed, 2 a mistake in what was asked.
END
}

# Takes one of the flags above; false where it is another.
shared_flag() {
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --internal-ip) connection+=("$1") ;;
    --batch-size=* | --tunnel-through-iap)  # the released command has neither
      tpu_vm=(alpha compute tpus tpu-vm)
      connection+=("$1")
      ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    *) return 1 ;;
  esac
}

unknown_flag() {
  mistake "unknown argument '$1': values are written --flag=VALUE; --help lists the flags"
}

# To be called when all flags are read.
flags_read() {
  local index
  [[ $name ]] || mistake "no TPU named: give --name=NAME or set SBP_TPU_NAME"
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    mistake "--name=$name: expected small letters, digits and hyphens, a letter first, no hyphen last"
  [[ $zone ]] || mistake "no zone named: give --zone=ZONE or set SBP_TPU_ZONE (e.g. us-east5-b)"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || mistake "--slices=$slices: expected a number from 1"
  if [[ ! $dry_run ]] && ! command -v gcloud >/dev/null; then
    mistake "gcloud is not on PATH: install the Google Cloud SDK, then: gcloud auth login"
  fi
  if [[ ! $dry_run ]]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
  fi
  where=("--zone=$zone" ${project:+"--project=$project"})
  if ((slices == 1)); then
    nodes=("$name")
  else
    for ((index = 0; index < slices; index++)); do nodes+=("$name-$index"); done
  fi
}

# Ends the script where --slice=INDEX is not one of --slices.
slice_exists() {
  if ! [[ $1 =~ ^(0|[1-9][0-9]*)$ ]] || (($1 >= slices)); then
    mistake "--slice=$1: expected a number from 0 to $((slices - 1)) (--slices=$slices)"
  fi
}

# Google's name for a TPU type, checked: prints it and the runtime version of its images.
accelerator_and_runtime() {
  local type=$1 runtime=$2
  [[ $type ]] || mistake "no TPU type named: give --type=TYPE or set SBP_TPU_TYPE (e.g. v6e-16)"
  [[ $type =~ ^v5e-[0-9]+$ ]] && type=v5litepod-${type#v5e-}
  if [[ ! $runtime ]]; then
    [[ $type =~ ^(v6e|v5p|v5litepod|v4|v3|v2)-[1-9][0-9]*$ ]] ||
      mistake "unknown TPU type '$type': expected v6e-N, v5p-N, v5e-N, v4-N, v3-N or v2-N\
 (newer chips are not served as queued resources); for another add --runtime-version=VERSION"
    case $type in
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      *) runtime=tpu-ubuntu2204-base ;;
    esac
  fi
  printf '%s %s\n' "$type" "$runtime"
}

# ---- Running commands ----------------------------------------------------------------------------

# One line (more where a word holds newlines) that any POSIX shell reads back as these very words.
quoted() {
  local word line='' LC_ALL=C
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+=${line:+ }$word
  done
  printf '%s\n' "$line"
}

# Runs a command and says what its failure means; with --dry-run prints it. Its input is empty: no
# command here may ask anything.
call() {
  local status=0 said=$scratch/said.$BASHPID
  if [[ $dry_run ]]; then
    quoted "$@"
    return
  fi
  { "$@" </dev/null 2>&1 >&3 3>&- | tee "$said" >&2; } 3>&1 || status=$?
  if ((status != 0)); then explain "$(<"$said")"; fi
  return "$status"
}

# TEXT: says in one line what this error text of gcloud's calls for. The order matters: a quota of
# nothing comes with the same code as a stock-out, and only the stock-out passes.
explain() {
  local text=$1 error=
  if [[ $text == *'ERROR: (gcloud'* ]]; then
    error=${text#*'ERROR: (gcloud'}  # not what a worker's own programs said before
  fi
  case ${error,,} in
    *'limit: 0' | *'limit: 0'[!0-9]* | *billing*)
      say "final: this project may not have that (quota or billing); trying again will not help"
      return
      ;;
    *quota*)
      say "the quota is used up: delete another TPU (SUSPENDED ones count too) or ask for more"
      return
      ;;
    *'code: 8' | *'code: 8'[!0-9]* | *'"code": 8'[!0-9]* | *resource_exhausted* | *'more capacity'*)
      say "no capacity in $zone now: try later or in another zone"
      return
      ;;
    *already_exists* | *'already exists'*)
      say "$name exists already (SUSPENDED and FAILED ones too): delete.sh first, or another --name"
      return
      ;;
    *'gcloud auth login'* | *'active account'*)
      say "not logged in: gcloud auth login"
      return
      ;;
    *not_found* | *'was not found'*)
      say "no such TPU: check --name, --zone, --project and --slices, or make it with create.sh"
      return
      ;;
  esac
  case $text in
    *'worker.sh: No such file'*) say "a worker is not set up: run setup.sh" ;;
    *ssh-add*)
      say "the ssh agent has not the key: eval \"\$(ssh-agent)\"; ssh-add ~/.ssh/google_compute_engine"
      ;;
    *'return code [255]'* | *'exit status 255'*)
      say "a worker could not be reached: try again; with many workers, add --batch-size=8"
      ;;
  esac
}

# ---- Queued resources ----------------------------------------------------------------------------

# TYPE RUNTIME [FLAG…]
create_queued_resource() {
  local type=$1 runtime=$2 shape=("--node-id=$name")
  shift 2
  if ((slices > 1)); then shape=("--node-count=$slices" "--node-prefix=$name"); fi
  call gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" "${shape[@]}" "$@"
}

# Prints the state and, where it failed, why: "FAILED<tab>…".
queued_resource_state() {
  call gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    "--format=value(state.state,state.failedData.error.message)"
}

delete_queued_resource() {
  # Without --force one that is ACTIVE is refused.
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet --async
}

# ---- Workers -------------------------------------------------------------------------------------

# How many workers a node has.
worker_count() {
  call gcloud compute tpus tpu-vm describe "$1" "${where[@]}" \
    "--format=value(networkEndpoints.len())"
}

# FILE TARGET: copies it into the home directory of every worker. One node after the other: the first
# connection of all makes the ssh key.
copy_to_every_worker() {
  local node
  for node in "${nodes[@]}"; do
    call gcloud "${tpu_vm[@]}" scp "$1" "$node:$2" "${where[@]}" --quiet --worker=all \
      "${connection[@]}" || return
  done
}

# NODE WORKER COMMAND [ARGUMENT…]: runs a command on one worker of a node, or on `all`. gcloud runs
# it again where the connection broke, so it must bear to be run twice.
on_worker() {
  local node=$1 worker=$2
  shift 2
  call gcloud "${tpu_vm[@]}" ssh "$node" "${where[@]}" --quiet "--worker=$worker" "${connection[@]}" \
    "--command=$(quoted "$@")"
}

# NODE WORKER VERB [ARGUMENT…]: a verb of worker.sh, as set-up left it there.
worker_does() {
  local node=$1 worker=$2 status=0
  shift 2
  on_worker "$node" "$worker" bash sbp/tree/tpu_scripts/worker.sh "$node" "$@" || status=$?
  # The shell's own code for a file that is not there: not set up, which is a mistake, not a failure.
  return $((status == 127 ? 2 : status))
}

# FUNCTION [ARGUMENT…]: calls it as `FUNCTION NODE all ARGUMENT…` for all nodes at once, since the
# processes of a job wait only so long for each other. Returns 2 where all that failed was a mistake.
on_every_node() {
  local function=$1 status=0 code index pids=()
  shift
  for index in "${!nodes[@]}"; do
    if [[ $dry_run ]]; then
      "$function" "${nodes[index]}" all "$@"
    else
      "$function" "${nodes[index]}" all "$@" &
      pids+=($!)
    fi
  done
  for index in "${!pids[@]}"; do
    code=0
    wait "${pids[index]}" || code=$?
    if ((code != 0)); then
      say "${nodes[index]}: not all workers did it"
      if ((code != 2)); then status=1; elif ((status == 0)); then status=2; fi
    fi
  done
  return "$status"
}

# VERB COMMIT: whether every worker answers the verb (check or idle) by saying that this commit, and
# no other, is set up on it. Counts who answered: a worker that nobody asked has not agreed.
commit_stands() {
  local verb=$1 commit=$2 node expected=0 answers count status=0
  if [[ $dry_run ]]; then
    for node in "${nodes[@]}"; do worker_count "$node"; done
    on_every_node worker_does "$verb" "$commit"
    return
  fi
  for node in "${nodes[@]}"; do
    count=$(worker_count "$node") || return 1
    [[ $count =~ ^[1-9][0-9]*$ ]] ||
      failure "$node has no workers yet: status.sh says when it is ACTIVE"
    ((expected += count))
  done
  answers=$(on_every_node worker_does "$verb" "$commit") || status=$?
  count=$(grep -F "commit $commit stands" <<<"$answers" | sort -u | wc -l) || true
  if ((count == expected && status == 0)); then
    say "commit $commit stands on all $expected workers"
    return
  fi
  if [[ $answers ]]; then printf '%s\n' "$answers" >&2; fi
  say "$((count)) of $expected workers have commit $commit and are ready"
  return $((status ? status : 1))
}
