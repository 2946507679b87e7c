#!/usr/bin/env bash
# Makes videos whose prompts change, with LongLive's published model on this machine, one process per GPU.
#   bash scripts/interactive_inference.sh --data_path SCRIPT.jsonl [further arguments of inference.py]
# CONFIG: another recipe (default configs/infer/longlive_interactive.yaml); --config_path says the same.
# RANKS, PYTHON: as for scripts/inference.sh.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,5p' "$0"; exit 0 ;; esac
export CONFIG=${CONFIG:-configs/infer/longlive_interactive.yaml}
exec bash "$(dirname "$0")/inference.sh" "$@"
