#!/usr/bin/env bash
# Makes videos with LongLive's published model on this machine, one process per GPU.
#   bash scripts/inference.sh --data_path PROMPTS.txt [further arguments of inference.py]
# CONFIG: another recipe (default configs/infer/longlive.yaml); --config_path says the same.
# RANKS: processes (default: the GPUs, 1 without). PYTHON: the interpreter (default .venv/bin/python, else python).
# Finished videos are kept: after Ctrl-C the same command goes on, with --resume also within a video.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,6p' "$0"; exit 0 ;; esac
gpus=$(nvidia-smi -L 2>/dev/null | wc -l) || gpus=0
. scripts/python.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m torch.distributed.run --standalone \
  --nproc_per_node="${RANKS:-$((gpus > 0 ? gpus : 1))}" \
  inference.py --config_path "${CONFIG:-configs/infer/longlive.yaml}" "$@"
