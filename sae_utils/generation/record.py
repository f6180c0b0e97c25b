"""What is recorded of a generated data set: what each sample depends on, and `generation.json`."""

from dataclasses import asdict
from typing import Any

import torch
from datasets import Dataset

from sae_utils.devices import dtype_name
from sae_utils.generated_data import fingerprint_samples
from sae_utils.generation.sampling import SamplingSettings
from sae_utils.generation.shards import Goal, GrowingDataset
from sae_utils.models import LoadedModel, fingerprint_model, fingerprint_tokenizer
from sae_utils.paths import short_name
from sae_utils.records import git_commit, versions


def asked_settings(reference: str, settings: SamplingSettings, dtype: torch.dtype) -> dict[str, Any]:
    """What a sample depends on, as far as it is known without the model."""
    return {"model": short_name(reference), **asdict(settings), "dtype": dtype_name(dtype)}


def full_settings(source: LoadedModel, settings: SamplingSettings, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that a sample depends on. The model is read as it was loaded, before it is prepared for sampling."""
    return {
        **asked_settings(source.reference, settings, dtype),
        "model_fingerprint": fingerprint_model(source.model),
        "tokenizer_fingerprint": fingerprint_tokenizer(source.tokenizer),
        "bos_id": source.bos_id,
        "eos_ids": list(source.eos_ids),
    }


def make_record(growing: GrowingDataset, source: LoadedModel, goal: Goal, dataset: Dataset) -> dict[str, Any]:
    """Contents of generation.json, without the statistics.

    Args:
        growing: Where the data set grew.
        source: The model that it was sampled from.
        goal: How much was asked for.
        dataset: The data set.
    """
    return {
        "settings": growing.settings,
        "model_reference": source.reference,
        "bos_token": source.tokenizer.convert_ids_to_tokens(source.bos_id),
        "goal": asdict(goal),
        "n_samples": len(dataset),
        "n_tokens": int(dataset.data.column("num_tokens").to_numpy().sum()),
        "fingerprint": fingerprint_samples(dataset),
        "device": source.model.device.type,
        **_rounding(source.model.device, growing.batches),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _rounding(device: torch.device, batches: list[list]) -> dict[str, Any]:
    """What, beside the settings, shows in the last bits on a GPU and may so change an id; nothing on a CPU."""
    if device.type == "cpu":
        return {}
    return {"device_name": torch.cuda.get_device_name(device), "batches": batches}
