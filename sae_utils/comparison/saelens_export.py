"""SAEs in SAELens' own folder format, for its analysis tools.

The weights are sparsify's, unchanged and in float32: `W_enc` `(d_model, n_latents)` and `W_dec` `(n_latents, d_model)`,
encoding `topk(relu((x - b_dec) @ W_enc + b_enc))`. Decoder rows are not made unit norm, which would change which
latents are among the top k. The hook has the name of the Hugging Face module, as SAELens has it for models that it
loads as `AutoModelForCausalLM`.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from sae_utils.comparison.trained import TrainedSae
from sae_utils.files import write_json, written_folder
from sae_utils.locks import LONG_PATIENCE_SEC, Lock
from sae_utils.memory import sae_bytes
from sae_utils.models import load_config

FOLDER = "saelens"
"""Folder of the exports inside the checkpoints' folder."""


FORMAT_VERSION = "6.54.12"
"""SAELens' version whose format this is; without one, SAELens takes the folder for one of before 6.0 and drops what it
says about model and hook."""


def export_saelens(saes: Sequence[TrainedSae], checkpoint_dir: Path) -> list[Path]:
    """Write a folder per SAE that SAELens' `SAE.load_from_disk` reads; one that is there is replaced.

    Returns:
        The folders, `<checkpoint_dir>/saelens/<target>_from_<source>_seed_<s>/layers.<L>`.
    """
    refusal = f"another run has been exporting to {checkpoint_dir / FOLDER} for {LONG_PATIENCE_SEC / 60:.0f} minutes"
    with Lock(checkpoint_dir, FOLDER, refusal=refusal, patience_sec=LONG_PATIENCE_SEC):
        return [_export(trained, checkpoint_dir / FOLDER) for trained in saes]


def saelens_config(trained: TrainedSae, k: int) -> dict:
    """cfg.json as SAELens writes it for an SAE of the architecture `topk`."""
    reference, settings = trained.run["target_reference"], trained.run["settings"]
    return {
        "architecture": "topk",
        "d_in": trained.record["d_model"],
        "d_sae": trained.record["n_latents"],
        "k": k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "model_name": reference,
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": f"{base_prefix(load_config(reference))}{trained.hookpoint}",
            "hook_head_index": None,
            "dataset_path": trained.run["dataset"],
            "context_size": settings["ctx_len"],
            "prepend_bos": False,
        },
    }


def base_prefix(config: PretrainedConfig) -> str:
    """What stands before the name of a module of `model.base_model` inside the whole language model.

    >>> from transformers import GPTNeoXConfig
    >>> base_prefix(GPTNeoXConfig())
    'gpt_neox.'
    """
    prefix = AutoModelForCausalLM._model_mapping[type(config)].base_model_prefix
    return f"{prefix}." if prefix else ""


def _export(trained: TrainedSae, exports: Path) -> Path:
    """Write one SAE's folder."""
    folder = exports / trained.folder.parent.name / trained.folder.name
    sae = trained.load("cpu")
    weights = {
        "W_enc": sae.encoder.weight.T.contiguous(),
        "b_enc": sae.encoder.bias,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    config = saelens_config(trained, sae.cfg.k)
    arrays = {name: tensor.detach().float() for name, tensor in weights.items()}
    with written_folder(folder, n_bytes=sae_bytes(sae.d_in, sae.num_latents)) as scratch:
        save_file(arrays, scratch / "sae_weights.safetensors")
        write_json(scratch / "cfg.json", config)
    return folder
