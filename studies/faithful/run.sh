#!/usr/bin/env bash
# The setting of FaithfulSAE at full size: Pythia-1.4b and 2.8b, each on its own text, on the other's and on the Pile.
#
#     bash studies/faithful/run.sh                                     # one machine with a GPU
#     sbatch --nodes 2 --gpus-per-node 4 studies/faithful/run.sh       # several, from the project's folder
#     TRAIN_FLAGS=--dry_run bash studies/faithful/run.sh               # once the texts are there: what training would take
#
# Every variable of docs/study.sbatch can be given. Stopped and started again, it goes on where it was.
#SBATCH --job-name=faithful
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

export NUM_SEEDS=${NUM_SEEDS:-3}                                       # three are needed for a spread
export CONTROL=${CONTROL:-EleutherAI/the_pile_deduplicated}            # what both models were taught
export BUDGETS=${BUDGETS:-6.25e6 12.5e6 25e6 50e6}                     # beside the whole, for curves
export TRAIN_FLAGS="--k 32 --text_datasets $CONTROL --keep_at $BUDGETS ${TRAIN_FLAGS:-}"
exec bash "${CODE:-.}/docs/study.sbatch"
