#!/usr/bin/env bash
# Trains on this machine, one process per GPU.
#   bash scripts/launch_node.sh --config_path RECIPE [further arguments of train.py]
# RANKS: processes (default: the GPUs, 1 without). PYTHON: the interpreter (default .venv/bin/python, else python).
# Ctrl-C, SIGTERM or SIGUSR1 let the training save and stop; <logdir>/REQUEUE is there then. A second one ends a run
# that does not train yet.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6p' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/launch_nodes.sh" 1 localhost:0 "$@"
