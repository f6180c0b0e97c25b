# make demo   both scripts on a small real model, CPU, a few minutes       make test   format check, lint, tests
# Each makes .venv first if it is missing; Python >= 3.11, make and a package index are all it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_PROCESSES := --numprocesses auto --maxprocesses 4 --dist loadfile
DEMO_MODEL := .cache/SmolLM2-135M-Instruct
# Without instructions for bfloat16, a processor multiplies it an eighth as fast as float32.
DEMO_DTYPE := $(shell grep -qE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo 2>/dev/null && echo bfloat16 || echo float32)
# Where pip looks for PyTorch as well: a CPU build there, 2.13.0+cpu, counts as newer than the 2.13.0 with CUDA.
TORCH_INDEX_URL ?=
export TOKENIZERS_PARALLELISM := false

# A command, and how long it took.
timed = @echo '$(1)'; start=$$(date +%s); $(1) && echo "$$(($$(date +%s) - start)) s: $(1)"

.PHONY: demo test study study-report faults soak bench bench-gpu bench-page format clean distclean

# sparsify's own learning rate is for steps of many more tokens than the demo's 512; with 5e-3, FVU falls steadily.
demo: $(VENV)/ready $(DEMO_MODEL)/config.json
	$(BIN)/python generate_datasets.py --models $(DEMO_MODEL) --num_tokens 50000 --max_length 256 --seed 4 \
	    --batch_size 128 --dtype $(DEMO_DTYPE) --device cpu --output_dir demo_output/datasets
	WANDB_DIR=demo_output $(BIN)/python train_sae.py --org_name .cache --target_models SmolLM2-135M-Instruct \
	    --source_models SmolLM2-135M-Instruct --layers 7 15 --num_seeds 2 --num_latents 2304 --ctx_len 256 --lr 5e-3 \
	    --random_tokens 20000 --wandb_mode offline --device cpu --datasets_dir demo_output/datasets \
	    --checkpoint_dir demo_output/checkpoints --results_dir demo_output/results

# One thread each, as threads of several processes wait for each other. Tests see a GPU only where it is asked for; on a
# machine without one, the last line skips all it would run.
test: $(VENV)/ready
	$(call timed,$(BIN)/ruff format --check .)
	$(call timed,$(BIN)/ruff check .)
	$(call timed,OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_PROCESSES))
	$(call timed,$(BIN)/python -m pytest -m gpu)

# Are features the model's or the data's, of a small model and of a real one: hours on a CPU; stopped, it goes on.
study: $(VENV)/ready $(DEMO_MODEL)/config.json
	bash studies/own_text/small_model.sh study_output/small
	bash studies/own_text/smollm2.sh study_output/smollm2

# Pages, figures and tables of the study, from the numbers that are recorded in it.
study-report: $(VENV)/ready
	$(BIN)/python studies/own_text/report.py study_output/report

# Both scripts while they are killed, starved, fed with nonsense (20 minutes, ends with a table), and for 10 minutes on end.
faults: $(VENV)/ready
	$(BIN)/python faults/suite.py

soak: $(VENV)/ready
	$(BIN)/python faults/soak.py

# Speed side by side with other projects: on this CPU (half an hour), and of sampling on a GPU with random weights.
bench: $(VENV)/ready $(DEMO_MODEL)/config.json
	$(BIN)/python benchmarks/generation.py --model $(DEMO_MODEL) --rounds 1
	$(BIN)/python benchmarks/training.py --model $(DEMO_MODEL)
	$(BIN)/python benchmarks/matching.py

bench-gpu: $(VENV)/ready
	$(BIN)/python benchmarks/generation.py --config pythia-1.4b --device cuda --rows 512 --tokens 512
	$(BIN)/python benchmarks/generation.py --config pythia-2.8b --device cuda --rows 256 --tokens 512

# The tables and the figure of benchmarks/README.md, from the records.
bench-page: $(VENV)/ready
	$(BIN)/python benchmarks/page.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/ready: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, found " + sys.version.split()[0] + "; give another: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_INDEX_URL:%=--extra-index-url %) \
	    -r requirements.txt -c constraints.txt
	touch $@

$(DEMO_MODEL)/config.json: | $(VENV)/ready
	$(BIN)/python demo/fetch_model.py $(DEMO_MODEL)

# What `make` and the demo made, without the downloaded model; `distclean` removes that, too.
clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache

distclean: clean
	rm -rf .cache
