#!/usr/bin/env bash
# How rate, batch, k and sizes of part A were chosen: on a sample of the model that nothing is reported on.
#
#     bash studies/own_text/trials.sh study_output/small         # once small_model.sh has taught its model; an hour
#
# Prints, for every trial, what is left unexplained of held-out tokens and how many latents the two seeds share.
set -euo pipefail
WORK=${1:?where small_model.sh has worked}
PYTHON=${PYTHON:-.venv/bin/python}

sample() {
    $PYTHON generate_datasets.py --models "$WORK/models/coder" --num_tokens "$1" --max_length 256 --seed 5 --top_p 1.0 \
        --device cpu --dtype float32 --output_dir "$WORK/datasets"
}

# LATENTS K LEARNING_RATE ROWS_A_STEP TOKENS
try() {
    local folder="$WORK/trials/latents_$1_k_$2_lr_$3_rows_$4_tokens_$5"
    $PYTHON train_sae.py --org_name "$WORK/models" --target_models coder --source_models coder --dataset_seed 5 \
        --dataset_top_p 1.0 --datasets_dir "$WORK/datasets" --layers 1 2 --num_seeds 2 --num_latents "$1" --k "$2" \
        --lr "$3" --ctx_len 256 --batch_size "$4" --max_tokens "$5" --eval_tokens 20480 --pairs within \
        --random_tokens 1000 --wandb_mode disabled --quiet --device cpu --dtype float32 --checkpoint_dir "$folder" \
        --results_dir "${folder/trials/trial_results}" > /dev/null
    $PYTHON - "${folder/trials/trial_results}/metrics.json" <<'END'
import json, sys
from pathlib import Path

metrics = json.loads(Path(sys.argv[1]).read_text())
for pair in metrics["pairs"]:
    left = [sae["evaluations"][0]["fvu"] for sae in metrics["saes"] if sae["layer"] == pair["layer"]]
    fvu = sum(left) / len(left)
    print(f"{Path(sys.argv[1]).parent.name}, layer {pair['layer']}: FVU {fvu:.3f}, SFR {pair['sfr']:.2f}")
END
}

sample 500000
for rows in 4 16; do
    for rate in 3e-3 1e-2 3e-2; do
        try 512 8 $rate $rows 470000
    done
done

sample 2186240
while read -r latents k rate; do
    try "$latents" "$k" "$rate" 4 2048000
done <<'END'
512 16 1e-2
256 16 1e-2
512 8 3e-3
256 8 1e-2
256 8 3e-3
256 8 1e-3
128 8 1e-2
128 8 3e-3
512 4 1e-2
256 4 1e-2
256 4 3e-3
END
