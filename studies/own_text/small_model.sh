#!/usr/bin/env bash
# Part A: SAEs of a small model whose training text we know, on what it says, what it was taught and what it never saw.
#
#     bash studies/own_text/small_model.sh study_output/small
#
# Stopped and started again, it goes on where it was. PLAN.md has the reasons of every size; each can be given as a
# variable, for a try: EPOCHS=0.01 N_TOKENS=64000 BUDGETS=32000 bash ...
set -euo pipefail
WORK=${1:?where to work, such as study_output/small}
CODE=${CODE:-.}                       # the project's folder
PYTHON=${PYTHON:-.venv/bin/python}
PACKAGES=${PACKAGES:-}                # flags of texts.py: other packages than its own
EPOCHS=${EPOCHS:-1}                   # how often the model sees its text
N_TOKENS=${N_TOKENS:-2048000}         # training tokens per SAE
BUDGETS=${BUDGETS:-128000 256000 512000 1024000}
N_SEEDS=${N_SEEDS:-3}
LAYERS=${LAYERS:-1 2}
LR=${LR:-3e-3}
EVAL_TOKENS=${EVAL_TOKENS:-10240}
RANDOM_TOKENS=${RANDOM_TOKENS:-50000}
N_SAMPLED=$((N_TOKENS + N_TOKENS / 16 + EVAL_TOKENS))
export TOKENIZERS_PARALLELISM=false
set -x

# The texts, the model, and its sibling: the same text in another order, from other weights.
$PYTHON "$CODE/studies/own_text/texts.py" "$WORK/texts" $PACKAGES
$PYTHON "$CODE/studies/own_text/random_ids.py" "$WORK/texts/tokenizer" "$N_SAMPLED" "$WORK/texts/random_ids"
$PYTHON "$CODE/studies/own_text/teach.py" "$WORK/texts" --seed 0 --epochs "$EPOCHS" --model "$WORK/models/coder"
$PYTHON "$CODE/studies/own_text/teach.py" "$WORK/texts" --seed 1 --epochs "$EPOCHS" --model "$WORK/models/sibling"

# What both say when they are given nothing; nothing of their distributions is cut off.
$PYTHON "$CODE/generate_datasets.py" --models "$WORK/models/coder" "$WORK/models/sibling" --num_tokens "$N_SAMPLED" \
    --max_length 256 --seed 4 --top_p 1.0 --device cpu --dtype float32 --output_dir "$WORK/datasets"

# SAEs of two sizes, each with results of its own.
train() {
    $PYTHON "$CODE/train_sae.py" --org_name "$WORK/models" --target_models coder --source_models coder sibling \
        --text_datasets "$WORK"/texts/{taught,held_out,foreign}.jsonl "$WORK/texts/random_ids" \
        --controls shuffled:coder --datasets_dir "$WORK/datasets" --dataset_top_p 1.0 --layers $LAYERS \
        --num_seeds "$N_SEEDS" --k 4 --lr "$LR" --ctx_len 256 --batch_size 4 --max_tokens "$N_TOKENS" \
        --eval_tokens "$EVAL_TOKENS" --random_tokens "$RANDOM_TOKENS" --pairs within between --wandb_mode disabled \
        --device cpu --dtype float32 "$@"
}
train --num_latents 512 --keep_at $BUDGETS --checkpoint_dir "$WORK/checkpoints_512" --results_dir "$WORK/results_512"
train --num_latents 256 --keep_at $BUDGETS --checkpoint_dir "$WORK/checkpoints_256" --results_dir "$WORK/results_256"
