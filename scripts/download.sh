#!/usr/bin/env bash
# Fetches official weights with `hf download` (huggingface_hub, in requirements.txt). Try --help.
set -euo pipefail

# name -> hub repository, then the files to take (none: all but pictures and documents)
declare -A SETS=(
    [t2v-1.3B]="Wan-AI/Wan2.1-T2V-1.3B"
    [t2v-14B]="Wan-AI/Wan2.1-T2V-14B"
    [i2v-14B]="Wan-AI/Wan2.1-I2V-14B-480P"
    [ti2v-5B]="Wan-AI/Wan2.2-TI2V-5B"
    [t2v-A14B]="Wan-AI/Wan2.2-T2V-A14B"
    [i2v-A14B]="Wan-AI/Wan2.2-I2V-A14B"
    [self-forcing]="gdhe17/Self-Forcing checkpoints/self_forcing_dmd.pt"
    [ode-init]="gdhe17/Self-Forcing checkpoints/ode_init.pt"
    [longlive]="Efficient-Large-Model/LongLive-1.3B models/longlive_base.pt models/lora.pt"
)
ORDER=(t2v-1.3B t2v-14B i2v-14B ti2v-5B t2v-A14B i2v-A14B self-forcing ode-init longlive)

usage() {
    cat <<EOF
usage: scripts/download.sh [--dir DIR] [--dry-run] NAME...

Fetches each NAME into DIR/<repository's name> (DIR: models). An interrupted download goes on
where it stopped when the command is given again.

names:
EOF
    for name in "${ORDER[@]}"; do printf '  %-13s %s\n' "$name" "${SETS[$name]}"; done
    echo
    echo "self-forcing, ode-init and longlive are transformers only; they need t2v-1.3B for the rest."
}

fail() {
    echo "download.sh: $1" >&2
    exit 2
}

dir=models
dry=
names=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry=echo ;;
        --dir)
            [ $# -ge 2 ] && [ -n "$2" ] || fail "--dir needs a folder"
            dir="$2"
            shift
            ;;
        -*) fail "unknown option $1; see --help" ;;
        *)
            [ -n "${SETS[$1]:-}" ] || fail "unknown name $1; known: ${ORDER[*]}"
            names+=("$1")
            ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || fail "give one or more names: ${ORDER[*]}"

hf=hf
if ! command -v hf >/dev/null; then
    hf="$(dirname "$0")/../.venv/bin/hf"
    [ -x "$hf" ] || [ -n "$dry" ] || fail "the command hf is missing; run \`make test\` once, or pip install huggingface_hub"
fi
for name in "${names[@]}"; do
    read -r -a parts <<<"${SETS[$name]}"
    if [ ${#parts[@]} -eq 1 ]; then parts+=(--exclude "assets/*" --exclude "examples/*"); fi
    repository="${parts[0]}"
    $dry "$hf" download "${parts[@]}" --local-dir "$dir/${repository#*/}"
done
