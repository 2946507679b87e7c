#!/usr/bin/env bash
# Trains on several machines together; run it on each of them, at about the same time.
#   bash scripts/launch_nodes.sh NODES HOST:PORT --config_path RECIPE [further arguments of train.py]
# NODES: how many machines; HOST: one of them, PORT: any free port there. The project's folder, the data and the run's
# folder must be shared by all. RANKS: processes per machine (default: its GPUs, 1 without). PYTHON: the interpreter.
# Ctrl-C, SIGTERM or SIGUSR1 on one machine let all ranks save and stop; <logdir>/REQUEUE is there then. A second one
# ends a run that does not train yet.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,7p' "$0"; exit 0 ;; esac
if [ $# -lt 3 ]; then
  echo "launch_nodes.sh: give the number of machines, HOST:PORT, and the arguments of train.py (--help says more)" >&2
  exit 2
fi
nodes=$1 master=$2
shift 2
. scripts/python.sh
gpus=$(nvidia-smi -L 2>/dev/null | wc -l) || gpus=0
ranks=${RANKS:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# In a process group of its own, so that Ctrl-C comes to this script alone. The launcher would die of SIGUSR1;
# ignoring it is inherited, and train.py takes the signal up again.
set -m
(
  trap '' USR1
  exec "$python" -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$ranks" --rdzv_backend=c10d \
    --rdzv_endpoint="$master" --rdzv_id="${SLURM_JOB_ID:-longtake}" --shutdown_timeout=280 train.py "$@"
) &
launcher=$!

stopping=
stop() { # one rank is enough: all agree on what one received
  worker=$(pgrep -P "$launcher" -f train.py | sed -n 1p) || true
  if [ -n "$worker" ] && [ -z "$stopping" ]; then
    kill -USR1 "$worker" || true
    stopping=yes
  else
    kill -TERM "$launcher" || true # no rank yet, or one that does not train yet
  fi
}
trap stop INT TERM USR1
while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done # a trap ends a wait
wait "$launcher"
