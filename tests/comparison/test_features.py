"""What the feature browser is given of each SAE."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from grid_files import LAYERS, LEFT_OUT, SEEDS, SOURCES, arrays, features, held_out_tokens, pair_arrays, sae_of

from sae_utils.comparison.features import best_matches
from sae_utils.evaluation.activations import layer_outputs


def test_contexts_have_the_activations_that_the_sae_gives(grid):
    """Each context is found among the held-out sequences, and encoded again from there."""
    target = load(Path("tiny"))
    names = [target.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(len(target.tokenizer))]
    for source, layer in itertools.product(SOURCES, LAYERS):
        tokens = held_out_tokens(source)
        texts = [[names[i] for i in row] for row in tokens.tokens.tolist()]
        outputs = layer_outputs(target.model, [f"layers.{layer}"], torch.from_numpy(tokens.tokens.astype(np.int64)))
        for seed, latents in features(source, layer)["seeds"].items():
            sae = sae_of(source, layer, int(seed))
            with torch.no_grad():
                top = sae.encode(outputs[f"layers.{layer}"].flatten(0, 1))
            dense = torch.zeros(len(top.top_acts), 48).scatter(1, top.top_indices, top.top_acts).view(-1, 32, 48)
            dense[~LEFT_OUT.keeps_ids(torch.from_numpy(tokens.tokens.astype(np.int64)))] = 0
            for each in latents:
                expected = dense[:, :, each["latent"]]
                peaks = expected.max(dim=1).values.sort(descending=True).values
                n_expected = min(6, int((peaks > 0).sum()))
                assert len(each["contexts"]) == n_expected
                for context, peak in zip(each["contexts"], peaks, strict=False):
                    row = expected[texts.index(context["tokens"])]
                    assert context["activations"] == pytest.approx(row.tolist(), rel=1e-3, abs=1e-6)
                    assert context["peak"] == int(row.argmax())
                    assert context["activations"][context["peak"]] == pytest.approx(float(peak), rel=1e-3)


def test_features_repeat_the_arrays(grid):
    for source, layer in itertools.product(SOURCES, LAYERS):
        stored, shown = arrays(source, layer), features(source, layer)
        assert (shown["n_latents"], list(shown["seeds"])) == (48, ["0", "1", "2"])
        for seed, latents in shown["seeds"].items():
            assert len(latents) == int(((stored[f"firing_rate_{seed}"] > 0) | stored[f"is_fake_{seed}"]).sum())
            for each in latents:
                for name in ("firing_rate", "max_activation", "random_rate", "is_fake"):
                    assert each[name] == stored[f"{name}_{seed}"][each["latent"]]


def test_with_two_seeds_the_partner_of_a_partner_is_oneself(grid):
    for source, layer in itertools.product(SOURCES, LAYERS):
        pair = {(0, 1): pair_arrays(source, layer, 0, source, 1)}
        first, second = best_matches(0, pair), best_matches(1, pair)
        assert sorted(first["partner"]) == list(range(48))
        assert second["partner"][first["partner"]].tolist() == list(range(48))
        assert np.array_equal(second["cosine"][first["partner"]], first["cosine"])
        assert (set(first["partner_seed"]), set(second["partner_seed"])) == ({1}, {0})


def test_best_match_is_the_highest_cosine_over_all_other_seeds(grid):
    """Cosines computed again from the weights; the matching read entry by entry, from either side."""
    for source, layer in itertools.product(SOURCES, LAYERS):
        stored = {(a, b): pair_arrays(source, layer, a, source, b) for a, b in itertools.combinations(SEEDS, 2)}
        decoders = {seed: torch.nn.functional.normalize(sae_of(source, layer, seed).W_dec.data) for seed in SEEDS}
        for seed in SEEDS:
            found = best_matches(seed, stored)
            for latent in range(48):
                candidates = []
                for other in set(SEEDS) - {seed}:
                    a, b = sorted((seed, other))
                    partner = stored[a, b]["partner"].tolist()
                    match = partner[latent] if seed == a else partner.index(latent)
                    candidates.append((float(decoders[seed][latent] @ decoders[other][match]), match, other))
                best = max(candidates)
                assert found["cosine"][latent] == pytest.approx(best[0], abs=1e-6)
                if not math.isclose(candidates[0][0], candidates[1][0], abs_tol=1e-6):
                    assert (found["partner"][latent], found["partner_seed"][latent]) == best[1:]
            (example, *_) = features(source, layer)["seeds"][str(seed)]
            assert example["best_cosine"] == found["cosine"][example["latent"]]
            assert example["partner"] == found["partner"][example["latent"]]
            assert example["partner_seed"] == found["partner_seed"][example["latent"]]


def test_best_match_of_a_single_seed_is_none(grid):
    assert best_matches(0, {(1, 2): pair_arrays("tiny", 0, 1, "tiny", 2)}) is None
