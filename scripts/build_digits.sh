#!/usr/bin/env bash
# Builds the embedded digits model from nothing: codec, text encoder, latents, teacher, causal model, few-step student,
# tables. About five hours on one CPU thread; every stage resumes where it was killed.
#   bash scripts/build_digits.sh [ASSETS]        (default assets/digits)
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,5p' "$0"; exit 0 ;; esac
assets=${1:-assets/digits}
. scripts/python.sh
export OMP_NUM_THREADS=1

"$python" scripts/build_digits_text.py --output "$assets"
[ -d "$assets/scheduler" ] || "$python" - "$assets/scheduler" <<'PYTHON'
import sys
from diffusers import UniPCMultistepScheduler
UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_type="bh2"
).save_pretrained(sys.argv[1])
PYTHON
if [ ! -d "$assets/vae" ]; then
  "$python" train.py --config_path configs/train/digits_codec.yaml
  cp -r runs/digits_codec/export/vae "$assets/vae"
fi
"$python" scripts/evaluate.py codec --vae "$assets/vae" --frames 33 329 --clips 64
"$python" scripts/encode_latents.py digits --vae "$assets/vae" --clips 8000 --batch 8 --output runs/digits_latents
"$python" train.py --config_path configs/train/digits_teacher.yaml
[ -d "$assets/teacher" ] || cp -r runs/digits_teacher/export/transformer "$assets/teacher"
"$python" train.py --config_path configs/train/digits_diffusion_forcing.yaml \
  trainer.generator.weights=runs/digits_teacher/export/transformer
[ -d "$assets/transformer" ] || cp -r runs/digits_diffusion_forcing/export/transformer "$assets/transformer"
if [ ! -d "$assets/student" ]; then
  "$python" train.py --config_path configs/train/digits_self_forcing_sid.yaml steps=3000
  "$python" train.py --config_path configs/train/digits_longlive_stream.yaml generation.cache.rope=read \
    trainer.generator.weights=runs/digits_self_forcing_sid/export/transformer
  cp -r runs/digits_longlive_stream/export/transformer "$assets/student"
fi
bash scripts/evaluate_digits.sh
