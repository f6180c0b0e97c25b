"""SAELens' part of benchmarks/saelens_check.py: runs in SAELens' environment and prints what it finds as JSON."""

import json
import sys

import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.load_model import load_model
from safetensors.torch import load_file
from torch import Tensor


@torch.no_grad()
def main(settings: dict) -> None:
    """Load an export and compare it with what sparsify gave."""
    torch.set_num_threads(settings["n_threads"])
    sae, given = SAE.load_from_disk(settings["export"]), load_file(settings["inputs"])
    found = {name: compare(sae, given, name) for name in ("real", "random")}
    found["real"] |= compare_activations(sae, given["ids"], given["real.x"])
    print(json.dumps({"class": type(sae).__name__} | found))


def compare(sae: SAE, given: dict[str, Tensor], name: str) -> dict:
    """Differences of latents and reconstructions, float32, and explained variance.

    Returns:
        Share of tokens with the same latents > 0; the largest difference of a latent and of an element of the
        reconstruction, over all tokens and over those with the same latents, and the largest values to compare them
        with; of tokens with other latents, the largest difference between the smallest latent kept and the largest
        one that the other library kept instead, as a share of it.
    """
    x, theirs, x_hat = (given[f"{name}.{what}"] for what in ("x", "latents", "x_hat"))
    latents = sae.encode(x)
    decoded = sae.decode(latents)
    is_same = ((latents > 0) == (theirs > 0)).all(dim=1)  # (tokens,)
    difference = {"latent": (latents - theirs).abs(), "reconstruction": (decoded - x_hat).abs()}
    calculator = ExplainedVarianceCalculator()
    for part, part_decoded in zip(x.split(512), decoded.split(512), strict=True):
        calculator.add_batch(part_decoded, part)
    return {
        "n_tokens": len(x),
        "share_of_tokens_with_equal_latent_sets": float(is_same.double().mean()),
        "n_tokens_with_other_latent_sets": int((~is_same).sum()),
        "share_of_latents_equal_to_the_last_bit": float(
            (latents == theirs)[(latents > 0) | (theirs > 0)].double().mean()
        ),
        "largest_swapped_latents_gap": swapped_gap(latents, theirs),
        "max_difference": {what: float(each.max()) for what, each in difference.items()},
        "max_difference_where_sets_are_equal": {what: float(each[is_same].max()) for what, each in difference.items()},
        "max_value": {"latent": float(theirs.max()), "reconstruction": float(x_hat.abs().max())},
        "saelens_fvu": 1 - calculator.compute(),
    }


def swapped_gap(latents: Tensor, theirs: Tensor) -> float:
    """How far from a tie latents are that only one library kept, as a share of their size; 0 if there are none."""
    only_one = (latents > 0) != (theirs > 0)
    tokens = only_one.any(dim=1)
    if not tokens.any():
        return 0.0
    ours_only = torch.where(only_one, latents, 0.0)[tokens].max(dim=1).values
    theirs_only = torch.where(only_one, theirs, 0.0)[tokens].max(dim=1).values
    return float(((ours_only - theirs_only).abs() / torch.maximum(ours_only, theirs_only)).max())


def compare_activations(sae: SAE, ids: Tensor, expected: Tensor) -> dict[str, float]:
    """SAELens' activations at the export's hook, on the same sequences in the same batches."""
    about = sae.cfg.metadata
    model = load_model(about.model_class_name, about.model_name, "cpu", {"dtype": torch.float32}, [about.hook_name])
    parts = [model.run_with_cache(batch, names_filter=[about.hook_name])[1][about.hook_name] for batch in ids.split(4)]
    return {"max_difference_of_activations_at_the_hook": float((torch.cat(parts).flatten(0, 1) - expected).abs().max())}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
