#!/usr/bin/env bash
# Makes a talking video with Live-Avatar's published model, its steps shared by the GPUs of this machine.
#   bash scripts/infinite_inference_multi_gpu.sh --image FACE --audio VOICE --prompt TEXT [arguments of inference.py]
# CONFIG: another recipe (default configs/infer/live_avatar_tpp.yaml); --config_path says the same.
# ENABLE_FP8=true: 8-bit linears. PYTHON: the interpreter (default .venv/bin/python, else python).
# RANKS: processes (default: the GPUs, five at most).
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,6p' "$0"; exit 0 ;; esac
door=inference.py recipe=configs/infer/live_avatar_tpp.yaml shared=1 settings=(--size "720*400" --seed 420)
. scripts/avatar.sh "$@"
