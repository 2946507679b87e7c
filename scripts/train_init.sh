#!/usr/bin/env bash
# LongLive's first training on this machine: a few-step student by Self-Forcing, with a short window and a sink.
#   bash scripts/train_init.sh [further arguments of train.py, e.g. --logdir FOLDER --dry_run]
# CONFIG: another recipe (default configs/train/longlive_init.yaml); --config_path says the same.
# RANKS, PYTHON, and what signals do: as for scripts/launch_node.sh.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,5p' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/launch_node.sh" --config_path "${CONFIG:-configs/train/longlive_init.yaml}" "$@"
