"""SAELens' part of benchmarks/training.py: runs in SAELens' environment and prints seconds and tokens as JSON."""

import json
import sys
import time

import torch
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig, TopKTrainingSAEConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig


def main(settings: dict) -> None:
    """Train every SAE and print how long it took."""
    torch.set_num_threads(settings["n_threads"])
    run = train_together if settings["mode"] == "multi" else train_one_by_one
    print(json.dumps({"elapsed_sec": run(settings), "n_tokens": n_tokens(settings)}))


def n_tokens(settings: dict) -> int:
    """Tokens that each SAE is trained on."""
    return settings["n_steps"] * settings["batch_size"] * settings["ctx_len"]


def train_one_by_one(settings: dict) -> float:
    """Seconds of a run per layer and seed, loading of the model not counted."""
    elapsed_sec = 0.0
    for hook in settings["hooks"]:
        for seed in range(settings["n_seeds"]):
            cfg = LanguageModelSAERunnerConfig(
                sae=sae_config(settings),
                hook_name=hook,
                seed=seed,
                is_dataset_tokenized=True,
                verbose=False,
                **common(settings),
            )
            elapsed_sec += timed(LanguageModelSAETrainingRunner(cfg, override_dataset=dataset(settings)))
    return elapsed_sec


def train_together(settings: dict) -> float:
    """Seconds of one run for all SAEs, loading of the model not counted."""
    pairs = [(hook, seed) for hook in settings["hooks"] for seed in range(settings["n_seeds"])]
    cfg = MultiSAETrainingRunnerConfig(
        saes={f"{hook}_{seed}": sae_config(settings) for hook, seed in pairs},
        hook_names={f"{hook}_{seed}": hook for hook, seed in pairs},
        **common(settings),
    )
    return timed(MultiSAETrainingRunner(cfg, override_dataset=dataset(settings)))


def timed(runner: LanguageModelSAETrainingRunner | MultiSAETrainingRunner) -> float:
    """Seconds of a run."""
    start = time.perf_counter()
    runner.run()
    return time.perf_counter() - start


def sae_config(settings: dict) -> TopKTrainingSAEConfig:
    """A TopK SAE like sparsify's: no auxiliary loss."""
    return TopKTrainingSAEConfig(
        d_in=settings["d_model"], d_sae=settings["n_latents"], k=settings["k"], aux_loss_coefficient=0.0
    )


def common(settings: dict) -> dict:
    """Settings of both runners."""
    return {
        "model_name": settings["model"],
        "model_class_name": "AutoModelForCausalLM",
        "model_from_pretrained_kwargs": {"dtype": getattr(torch, settings["dtype"])},
        "streaming": False,
        "context_size": settings["ctx_len"],
        "training_tokens": n_tokens(settings),
        "train_batch_size_tokens": settings["batch_size"] * settings["ctx_len"],
        "store_batch_size_prompts": settings["batch_size"],
        "n_batches_in_buffer": settings["batch_size"],  # one batch, not mixed with others: the least work
        "activations_mixing_fraction": 0.0,
        "prepend_bos": False,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": None,
        "device": settings["device"],
    }


def dataset(settings: dict) -> Dataset:
    """Random sequences, more than are trained on."""
    n_rows = (settings["n_steps"] + 4) * settings["batch_size"]
    ids = torch.randint(0, 40_000, (n_rows, settings["ctx_len"]), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": ids.tolist()})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
