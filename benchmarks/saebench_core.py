"""SAEBench's part of benchmarks/saebench.py: runs in SAEBench's environment and prints what it finds as JSON."""

import json
import os
import sys
import warnings
from importlib import metadata

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub on import

import torch
from datasets import Dataset
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, loading_from_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = ("sae-bench", "sae-lens", "transformer-lens", "transformers", "torch")


def main(settings: dict) -> None:
    """Measure an export as SAEBench's `multiple_evals` does, which would take the model and texts from a hub."""
    torch.set_num_threads(settings["n_threads"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sae = load_sae(settings["export"], settings["layer"])
    model = load_model(settings["model"])
    ids = load_file(settings["ids"])["ids"]
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        context_size=ids.shape[1],
        streaming=False,
        store_batch_size_prompts=settings["batch_size"],
    )
    found, _ = run_evals(
        sae=sae,
        activation_store=store,
        model=model,
        eval_config=config_for(len(ids) // settings["batch_size"], settings),
        ignore_tokens=set() if settings["has_special"] else special_ids(model),
    )
    said = sorted({str(each.message) for each in caught if "Decoder weights" in str(each.message)})
    versions = {name: metadata.version(name) for name in PACKAGES}
    print(json.dumps({"metrics": found, "versions": versions, "warnings": said}))


def load_model(folder: str) -> HookedTransformer:
    """What `HookedTransformer.from_pretrained_no_processing` makes, which takes names of its own list alone.

    The functions that it calls, for configuration and weights, take folders.
    """
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = loading_from_pretrained.get_pretrained_model_config(
        folder, device="cpu", dtype=torch.float32, fold_ln=False
    )
    state = loading_from_pretrained.get_pretrained_state_dict(folder, config, hf_model, dtype=torch.float32)
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(folder), move_to_device=False)
    unprocessed = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(state, **dict.fromkeys(unprocessed, False))
    return model


def load_sae(export: str, layer: int) -> SAE:
    """The export, in the form that SAEBench has for those of SAELens.

    It names the module of Hugging Face's model; TransformerLens' name for the same place is given to it here.
    """
    sae = SAE.load_from_disk(export)
    sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    return load_and_format_sae("exported", sae, "cpu")[1]


def config_for(n_batches: int, settings: dict) -> CoreEvalConfig:
    """All scalar metrics on all sequences."""
    return CoreEvalConfig(
        batch_size_prompts=settings["batch_size"],
        n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches,
        exclude_special_tokens_from_reconstruction=not settings["has_special"],
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )


def special_ids(model: HookedTransformer) -> set[int]:
    """What `multiple_evals` leaves out."""
    tokenizer = model.tokenizer
    return {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
