#!/usr/bin/env bash
# Runs one run on all hosts of a TPU pod, which find each other by themselves.
#
#   launch/tpu_pod.sh --name=POD --zone=ZONE -- --config=configs/jigsaw_rl.py:paper --workdir=/mnt/runs/jigsaw
#   launch/tpu_pod.sh --name=POD --zone=ZONE --dry-run -- --config=...    # only prints the command
#
# --dir is the checkout of this repository on the hosts (default ssl_jax), --project is gcloud's. The workdir
# must be on a file system that all hosts share. After a preemption the same command goes on.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

name="" zone="" project="" dir="ssl_jax" dry_run=false
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --dir=*) dir=${1#*=} ;;
    --dry-run | --dry_run) dry_run=true ;;
    *) fail "unknown flag $1; known: --name=, --zone=, --project=, --dir=, --dry-run" ;;
  esac
  shift
done
[[ -n $name ]] || fail "give --name=POD, the name of the TPU VM"
[[ -n $zone ]] || fail "give --zone=ZONE, where $name is"
[[ ${1-} == -- ]] && shift
[[ " $*" == *" --config="* ]] || fail "give the run after --, such as: -- --config=configs/jigsaw_rl.py"

# Quoted twice: for the shell of the hosts, and for this one when printed.
printf -v run '%q ' python -m ssl_jax.main "$@"
printf -v where '%q' "${dir#\~/}"
[[ $dir == "~/"* ]] && where="~/$where" # that of the hosts
command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" ${project:+"--project=$project"}
  --worker=all "--command=cd $where && ${run% }")
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
command -v gcloud > /dev/null || fail "gcloud is not installed; --dry-run prints the command"
exec "${command[@]}"
