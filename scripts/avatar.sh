# Sourced by infinite_inference_*_gpu.sh and gradio_*_gpu.sh in the project's folder: runs a door with Live-Avatar.
# door: the Python file. recipe: with it the flags `settings` are the published ones, which later ones replace.
# shared: 1 = torchrun, one process for each GPU, at most five (RANKS: another number).
. scripts/python.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "${ENABLE_FP8:-false}" = true ]; then set -- "$@" model.linears=fp8; fi
case " $* " in
*" --config_path"*) ;;
*) if [ -n "${CONFIG:-}" ]; then set -- --config_path "$CONFIG" "$@"; else set -- --config_path "$recipe" "${settings[@]}" "$@"; fi ;;
esac
if [ "$shared" -eq 0 ]; then exec "$python" "$door" "$@"; fi
gpus=$(nvidia-smi -L 2>/dev/null | wc -l) || gpus=0
ranks=$((gpus > 5 ? 5 : gpus > 0 ? gpus : 1))
exec "$python" -m torch.distributed.run --standalone --nproc_per_node="${RANKS:-$ranks}" "$door" "$@"
