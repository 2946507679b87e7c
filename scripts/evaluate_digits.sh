#!/usr/bin/env bash
# Generates a video of each of the 240 prompts at one and four times the training length, measures them, and writes
# the tables of README.md and docs/results.md. Finished videos are kept, so it resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,3p' "$0"; exit 0 ;; esac
. scripts/python.sh
ranks=${RANKS:-1}
export OMP_NUM_THREADS=1

videos() { # recipe, folder, further overrides
  recipe=$1 folder=$2
  shift 2
  "$python" -m torch.distributed.run --nproc_per_node="$ranks" inference.py --config_path "configs/infer/$recipe.yaml" \
    --data_path prompts/digits_all.txt --output_folder "$folder" batch=24 "$@"
}
measure() { # record, further flags
  record=$1
  shift
  "$python" scripts/evaluate.py digits --output "docs/results/$record.json" "$@" || echo "a gate of $record failed"
}
videos digits outputs/digits_1x
videos digits outputs/digits_4x num_output_frames=36
measure digits_causal --videos outputs/digits_1x --codec assets/digits/vae --real
measure digits_causal_long --videos outputs/digits_4x --real
measure digits_reference --reference --frames 33
videos digits_student outputs/digits_student_1x
videos digits_student outputs/digits_student_4x num_output_frames=36
measure digits_student --videos outputs/digits_student_1x --codec assets/digits/vae
measure digits_student_long --videos outputs/digits_student_4x
videos digits_teacher outputs/digits_teacher
measure digits_teacher --videos outputs/digits_teacher --codec assets/digits/vae
"$python" scripts/tables.py
