#!/usr/bin/env bash
#SBATCH --job-name=longtake
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains as a SLURM job that saves five minutes before its time is over, and queues itself again until it is done.
#   sbatch --nodes=4 --time=24:00:00 scripts/launch_slurm.sh --config_path RECIPE --logdir FOLDER [arguments of train.py]
# Submit from the project's folder, which all nodes must share; options of sbatch stand before the script.
# RANKS: processes per node (default: its GPUs, 1 without). PYTHON: the interpreter (as launch_node.sh).
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '9,12p' "$0"; exit 0 ;; esac
cd "${SLURM_SUBMIT_DIR:-.}" # SLURM runs a copy of this file from a place of its own
if [ ! -f scripts/launch_nodes.sh ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "launch_slurm.sh: submit it by sbatch, from the project's folder (--help says more)" >&2
  exit 2
fi
logdir=
for argument in "$@"; do
  case "$argument" in --logdir=*) logdir=${argument#--logdir=} ;; esac
  if [ "${last:-}" = --logdir ]; then logdir=$argument; fi
  last=$argument
done
if [ -z "$logdir" ]; then
  echo "launch_slurm.sh: give --logdir FOLDER; whether to queue the job again is read there" >&2
  exit 2
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
rm -f "$logdir/REQUEUE" # of an earlier job: a run that fails must not be queued again

srun --ntasks-per-node=1 bash scripts/launch_nodes.sh "${SLURM_NNODES:-1}" \
  "${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))" "$@" &
step=$!
trap 'kill -USR1 "$step"' USR1 TERM # srun passes it on to every node
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a trap ends a wait
status=0
wait "$step" || status=$?
if [ -e "$logdir/REQUEUE" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
