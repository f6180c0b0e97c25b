#!/usr/bin/env bash
# How the learning rate and the batch of part A were chosen: by FVU on held-out tokens of a sample that is not reported on.
#
#     bash studies/own_text/trials.sh study_output/small         # once small_model.sh has taught its model
set -euo pipefail
WORK=${1:?where small_model.sh has worked}
PYTHON=${PYTHON:-.venv/bin/python}

$PYTHON generate_datasets.py --models "$WORK/models/coder" --num_tokens 500000 --max_length 256 --seed 5 --top_p 1.0 \
    --device cpu --dtype float32 --output_dir "$WORK/datasets"
for batch in 4 16; do
    for lr in 3e-3 1e-2 3e-2; do
        $PYTHON train_sae.py --org_name "$WORK/models" --target_models coder --source_models coder --dataset_seed 5 \
            --dataset_top_p 1.0 --datasets_dir "$WORK/datasets" --layers 1 2 --num_seeds 2 --num_latents 512 --k 8 \
            --lr $lr --ctx_len 256 --batch_size $batch --eval_tokens 20480 --train_only --wandb_mode disabled --quiet \
            --device cpu --dtype float32 --checkpoint_dir "$WORK/trials/batch_${batch}_lr_$lr"
        $PYTHON - "$WORK/trials/batch_${batch}_lr_$lr" <<'END'
import json, sys
from pathlib import Path

for path in sorted(Path(sys.argv[1]).glob("*/run.json")):
    for sae in json.loads(path.read_text())["saes"]:
        print(f"{Path(sys.argv[1]).name}, layer {sae['layer']}, {path.parent.name[-6:]}: FVU {sae['fvu']:.4f}")
END
    done
done
