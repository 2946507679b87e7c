#!/usr/bin/env bash
# Fetches weights and prompts with `hf download` (huggingface_hub, in requirements.txt). Try --help.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
table="$here/downloads.txt"

known() { sed -n 's/^\([^# ][^ ]*\) .*/\1/p' "$table"; }

usage() {
    cat <<EOF
usage: scripts/download.sh [--dir DIR] [--dry-run] NAME...

Fetches each NAME to the place where the recipes read it, in the project's folder. --dir DIR: what goes to models/ goes
to DIR instead (recipes then need other paths). An interrupted download goes on where it stopped when the command is
given again.

names: (repository, folder, files; no files: all but pictures and documents)
EOF
    sed -n 's/^[^#]/  &/p' "$table"
    cat <<'EOF'

self-forcing, ode-init and longlive are transformers only; they need t2v-1.3B for the rest. Trainings by
self_forcing_dmd.yaml and longlive_init.yaml need t2v-1.3B t2v-14B ode-init vidprom; by longlive_stream.yaml
t2v-1.3B t2v-14B longlive vidprom. tdm_wan.yaml and blade_wan.yaml need
t2v-1.3B vidprom; tdm_cogvideox.yaml and blade_cogvideox.yaml need cogvideox-5b vidprom.
EOF
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
            case "$2" in /*) dir="$2" ;; *) dir="$PWD/$2" ;; esac
            shift
            ;;
        -*) fail "unknown option $1; see --help" ;;
        *)
            known | grep -qxF -- "$1" || fail "unknown name $1; known: $(known | tr '\n' ' ')"
            names+=("$1")
            ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || fail "give one or more names: $(known | tr '\n' ' ')"

hf=hf
if ! command -v hf >/dev/null; then
    hf="$here/../.venv/bin/hf"
    [ -x "$hf" ] || [ -n "$dry" ] || fail "the command hf is missing; run \`make test\` once, or pip install huggingface_hub"
fi
cd "$here/.."
for name in "${names[@]}"; do
    read -r -a words < <(awk -v name="$name" '$1 == name' "$table")
    files=("${words[@]:3}")
    if [ ${#files[@]} -eq 0 ]; then files=(--exclude "assets/*" --exclude "examples/*"); fi
    folder="${words[2]}"
    case "$folder" in models/*) folder="$dir/${folder#models/}" ;; esac
    $dry "$hf" download "${words[1]}" "${files[@]}" --local-dir "$folder"
done
