#!/usr/bin/env bash
# Asks for TPU VMs as a queued resource: they come when there is capacity.
#
#   create.sh --name=NAME --zone=ZONE --type=TYPE [flag…] [-- GCLOUD_FLAG…]
#
#   --type=TYPE                v6e-16, v5p-32, v5e-16, v4-8, … (or SBP_TPU_TYPE)
#   --spot                     cheaper, and may be taken away at 30 seconds' notice
#   --valid-until-duration=6h  withdraw the request if it is not served by then
#   --runtime-version=VERSION  instead of the one that fits the type
#   --internal-ips             workers without external addresses (they need NAT to install things)
#   -- GCLOUD_FLAG…            further flags of `gcloud compute tpus queued-resources create`
#

source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

type=${SBP_TPU_TYPE:-}
runtime=
options=()
while (($#)); do
  case $1 in
    --type=*) type=${1#*=} ;;
    --runtime-version=*) runtime=${1#*=} ;;
    --spot | --internal-ips | --valid-until-duration=?*) options+=("$1") ;;
    --) shift; options+=("$@"); break ;;
    *) shared_flag "$1" || unknown_flag "$1" ;;
  esac
  shift
done
flags_read
fitting=$(accelerator_and_runtime "$type" "$runtime")
read -r type runtime <<<"$fitting"

create_queued_resource "$type" "$runtime" "${options[@]}" || failure "$name was not created"
[[ $dry_run ]] || say "$name is asked for; next: status.sh --name=$name --zone=$zone --wait"
