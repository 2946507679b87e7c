#!/usr/bin/env bash
# Serves the page of talking videos with Live-Avatar's published model on one GPU.
#   bash scripts/gradio_single_gpu.sh [arguments of demo/avatar.py]
# CONFIG: another recipe (default configs/infer/live_avatar.yaml); --config_path says the same.
# ENABLE_FP8=true: 8-bit linears. PYTHON: the interpreter (default .venv/bin/python, else python).
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,5p' "$0"; exit 0 ;; esac
door=demo/avatar.py recipe=configs/infer/live_avatar.yaml shared=0 settings=(--size "704*384" --seed 420)
. scripts/avatar.sh "$@"
