"""Untrained SAEs, compared as trained ones are."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from sae_utils.comparison.agreement import compare_dictionaries, directions
from sae_utils.comparison.floors import floor_of, untrained_floor, untrained_sae
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def test_untrained_saes_are_those_that_training_starts_from():
    """sparsify seeds globally and then builds; ours must give the same weights and leave global random state alone."""
    config = SparseCoderConfig(num_latents=24, k=4)
    torch.manual_seed(3)
    expected = SparseCoder(6, config, dtype=torch.float32)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    assert torch.equal(untrained_sae(6, config, 3).W_dec, expected.W_dec)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_untrained_saes_are_at_the_floor():
    config = SparseCoderConfig(num_latents=64, k=4)
    floor = untrained_floor(16, config, (0, 1))
    saes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        saes.append(directions(SparseCoder(16, config, dtype=torch.float32)))
    agreement = compare_dictionaries(*saes, floor)
    assert agreement.record["sfr"] == agreement.record["sfr_floor"] == floor.sfr
    assert agreement.record["mean_matched_cosine"] == agreement.record["mean_matched_cosine_floor"] > 0.2
    assert agreement.record["sfr_top1"] == agreement.record["sfr_top1_floor"]
    assert np.array_equal(agreement.matching.cosine, floor.cosine)
    assert untrained_floor(16, config, (0, 2)).mean_cosine != floor.mean_cosine
    assert untrained_floor(16, config, (0, 0)).sfr == 1


def test_a_floor_is_kept_once_for_both_orders_of_its_seeds():
    """Pairs of two sources come in either order, and a matching at full size takes minutes."""
    sae, device = untrained_sae(16, SparseCoderConfig(num_latents=64, k=4), 0), torch.device("cpu")
    there, back = (floor_of(sae, seeds, Path("results"), device) for seeds in ((2, 5), (5, 2)))
    assert len(list(Path("results").rglob("*.npz"))) == 1
    expected = untrained_floor(16, sae.cfg, (5, 2))
    assert np.array_equal(there.partner[back.partner], np.arange(64))
    assert np.array_equal(back.partner, expected.partner)
    assert np.allclose(back.cosine, expected.cosine, atol=1e-6)
    assert np.allclose(back.best, expected.best, atol=1e-6) and np.allclose(back.best_b, expected.best_b, atol=1e-6)
    assert (there.best >= there.cosine - 1e-6).all() and there.sfr_top1 >= there.sfr


def test_processes_that_find_one_floor_do_not_take_each_others_file_away():
    """Pairs of all layers have the same, so two processes come to it at the same time."""
    config = SparseCoderConfig(num_latents=16, k=4)
    sae, context = SparseCoder(8, config, dtype=torch.float32), get_context("fork")
    together = context.Barrier(4)

    def find() -> None:
        try:
            for seed in range(1, 40):
                together.wait()
                floor_of(sae, (0, seed), Path("results"), torch.device("cpu"))
        except BaseException:
            together.abort()  # the others wait for this one
            raise

    processes = [context.Process(target=find) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(Path("results").rglob("*"))) == 2 + 39
