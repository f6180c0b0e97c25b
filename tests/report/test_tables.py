from pathlib import Path

from sae_utils.comparison.results import Results, pair_key, sae_key
from sae_utils.report.tables import results_tables, wandb_summary


def sae_record(source: str, layer: int, seed: int, **own) -> dict:
    """A record with the numbers that are shown, evaluated on two sources."""
    numbers = {"n_tokens": 96, "fvu": 0.25, "fvu_without_first_position": 0.31, "ce_recovered": 0.9}
    numbers |= {"dead_share": 0.125, "firing_rate_quantiles": {"0.5": 0.1}, "by_position": [{"first": 0, "fvu": 0.1}]}
    numbers |= {"fvu_interval": [0.24, 0.2612], "ce_recovered_interval": [0.85, 0.95]}
    other = "other" if source == "tiny" else "tiny"
    return {
        "target": "tiny",
        "source": source,
        "layer": layer,
        "seed": seed,
        "path": f"checkpoints/tiny_from_{source}_seed_{seed}/layers.{layer}",
        "evaluations": [
            {"eval_source": other, "eval_fingerprint": "01"} | numbers | {"fvu": 0.75, "fvu_interval": [0.7, 0.8]},
            {"eval_source": source, "eval_fingerprint": "23", "is_tokenized_again": True} | numbers | own,
        ],
        "random_tokens": {"n_tokens": 2000, "ffr": 0.0125, "n_fake": 3, "ffr_interval": [0.01, 0.02]}
        | {"generator": "numpy.random.PCG64", "seed": 0},
    }


def pair_record(source: str, layer: int, **values) -> dict:
    about = {"target": "tiny", "source": source, "layer": layer, "seed": 0, "source_b": source, "seed_b": 1}
    numbers = {"sfr": 0.5, "sfr_both": 0.4, "sfr_live": 0.625, "sfr_floor": 0.0, "mean_matched_cosine": 0.71236}
    numbers |= {"sfr_top1": 0.55}
    numbers |= {"sfr_at": {"0.5": 0.6}, "mean_matched_cosine_floor": 0.2, "sfr_interval": [0.4381, 0.56]}
    return about | numbers | values


def results_of(saes: list[dict], pairs: list[dict]) -> Results:
    results = Results(Path("results"))
    results.saes = {(each["target"], each["source"], each["layer"], each["seed"]): each for each in saes}
    results.pairs = {pair_key(each): each for each in pairs}
    return results


def keys(records: list[dict]) -> list[tuple]:
    return [sae_key(each) for each in records]


def test_tables_by_hand():
    """Own source's numbers, not those of the source measured first; undefined numbers said; numbers to the right."""
    undefined = {"fvu": None, "fvu_interval": None, "ce_recovered": None, "dead_share": 1.0}
    undefined |= {"ce_recovered_interval": None}
    saes = [sae_record("tiny", 7, 0), sae_record("tiny", 7, 1), sae_record("other", 15, 0, **undefined)]
    pairs = [pair_record("tiny", 7, sfr_live=None), pair_record("other", 15, sfr_interval=None)]
    assert results_tables(results_of(saes, pairs), keys(saes)).splitlines() == [
        "target  source  layer  seed        FVU      95% interval  FVU w/o 1st  CE recovered      95% interval    dead"
        "    FFR    95% interval  path",
        "------  ------  -----  ----  ---------  ----------------  -----------  ------------  ----------------  ------"
        "  -----  --------------  --------------------------------------------",
        "tiny    tiny        7     0     0.2500  [0.2400, 0.2612]       0.3100        0.9000  [0.8500, 0.9500]   12.5%"
        "  1.25%  [1.00%, 2.00%]  checkpoints/tiny_from_tiny_seed_0/layers.7",
        "tiny    tiny        7     1     0.2500  [0.2400, 0.2612]       0.3100        0.9000  [0.8500, 0.9500]   12.5%"
        "  1.25%  [1.00%, 2.00%]  checkpoints/tiny_from_tiny_seed_1/layers.7",
        "tiny    other      15     0  undefined         undefined       0.3100     undefined         undefined  100.0%"
        "  1.25%  [1.00%, 2.00%]  checkpoints/tiny_from_other_seed_0/layers.15",
        "",
        "target  source  layer  seeds     SFR      95% interval   floor   SFR live  SFR both  PW-MCC",
        "------  ------  -----  -----  ------  ----------------  ------  ---------  --------  ------",
        "tiny    other      15  0 1    0.5000         undefined  0.0000     0.6250    0.4000  0.7124",
        "tiny    tiny        7  0 1    0.5000  [0.4381, 0.5600]  0.0000  undefined    0.4000  0.7124",
    ]


def test_small_numbers_are_not_shown_as_zero():
    """Nor zero as anything else."""
    saes = [sae_record("tiny", 7, 0, dead_share=0.0001, fvu=0.00002)]
    pairs = [pair_record("tiny", 7, sfr=0.00004, sfr_both=0.0)]
    sae, pair = results_tables(results_of(saes, pairs), keys(saes)).splitlines()[2::4]
    assert (sae.split()[4], sae.split()[11]) == ("0.00002", "0.01%")
    assert (pair.split()[5], pair.split()[8]) == ("0.00004", "0.0000")


def test_tables_show_the_saes_of_the_run_and_the_pairs_among_their_layers():
    saes = [sae_record(source, layer, seed) for source in ("tiny", "other") for layer in (7, 15) for seed in (0, 1)]
    pairs = [pair_record(source, layer) for source in ("tiny", "other") for layer in (15, 7)]
    shown = [each for each in saes if each["source"] == "tiny"]
    lines = results_tables(results_of(saes, pairs), keys(shown)).splitlines()
    assert [line.split()[:4] for line in lines[2:6]] == [
        ["tiny", "tiny", str(i), str(s)] for i in (7, 15) for s in (0, 1)
    ]
    assert [line.split()[:3] for line in lines[9:]] == [["tiny", "tiny", "7"], ["tiny", "tiny", "15"]]


def test_records_from_before_intervals_and_diverged_saes_have_a_line():
    """An older results folder, and one run in it that failed, are no reason to show nothing."""
    old = sae_record("tiny", 7, 0, fvu_interval=None)
    del old["random_tokens"]["ffr_interval"], old["evaluations"][1]["ce_recovered_interval"]
    saes = [old, sae_record("tiny", 7, 1) | {"is_diverged": True}]
    of_old, of_diverged = results_tables(results_of(saes, []), keys(saes)).splitlines()[2:]
    assert of_old.split()[4:] == (
        ["0.2500", "undefined", "0.3100", "0.9000", "undefined", "12.5%", "1.25%", "undefined", old["path"]]
    )
    assert of_diverged.split()[4:] == ["diverged", saes[1]["path"]]


def contrast_record(**values) -> dict:
    about = {"target": "tiny", "layer": 7, "n_latents": 48, "source": "other", "source_b": "tiny", "measure": "sfr"}
    numbers = {"within": 0.55, "between": 0.25, "ratio": 0.4545, "ratio_interval": [0.4, 0.5], "verdict": "lower"}
    return about | numbers | values


def agreement_record(source: str, source_b: str, kind: str, sfr: float) -> dict:
    about = {"target": "tiny", "layer": 7, "n_latents": 48, "source": source, "source_b": source_b, "kind": kind}
    return about | {"sfr": sfr, "mean_matched_cosine": sfr / 2}


def test_sources_by_hand():
    """Agreement within each source and between them, and what it says; of the sources of the run alone."""
    saes = [sae_record(source, 7, seed) for source in ("other", "tiny") for seed in (0, 1)]
    results = results_of(saes, [pair_record("tiny", 7), pair_record("other", 7, source_b="tiny", seed_b=0)])
    results.agreements = [
        agreement_record("other", "other", "within", 0.5),
        agreement_record("tiny", "tiny", "within", 0.6),
        agreement_record("other", "tiny", "between", 0.25),
    ]
    undefined = {"ratio": None, "ratio_interval": None, "verdict": "at_floor"}
    results.contrasts = [contrast_record(), contrast_record(measure="mean_matched_cosine", **undefined)]
    text = results_tables(results, keys(saes))
    assert text.splitlines()[-4:] == [
        "target  sources      layer  number  within 1st  within 2nd  between      ratio      95% interval  same seed"
        "  between, against within",
        "------  -----------  -----  ------  ----------  ----------  -------  ---------  ----------------  ---------"
        "  -----------------------",
        "tiny    other, tiny      7  SFR         0.5000      0.6000   0.2500     0.4545  [0.4000, 0.5000]  undefined"
        "  less than within",
        "tiny    other, tiny      7  PW-MCC      0.2500      0.3000   0.1250  undefined         undefined  undefined"
        "  at the floor",
    ]
    assert text.count("seeds") == 1 and "0 0" not in text, "a pair of two sources is not one of two seeds"
    assert "within 1st" not in results_tables(results, keys(saes[:2]))


def test_a_pair_of_two_sources_is_in_the_summary_of_both():
    """The seed of the run's own source comes first."""
    between = pair_record("other", 7, source_b="tiny", sfr=0.25)
    results = results_of([], [between])
    assert wandb_summary(results, "tiny", "other")["agreement_with/tiny/sfr/layers.7/seeds_0_1"] == 0.25
    assert wandb_summary(results, "tiny", "tiny")["agreement_with/other/sfr/layers.7/seeds_1_0"] == 0.25
    assert wandb_summary(results, "tiny", "third") == {}


def test_one_seed_has_no_table_of_pairs():
    saes = [sae_record("tiny", 7, 0)]
    assert "SFR" not in results_tables(results_of(saes, []), keys(saes))


def test_summary_for_wandb_by_hand():
    """One cell's numbers, on all sources; undefined ones, what is no measurement, and other cells' are left out."""
    saes = [sae_record("tiny", 7, 1, fvu=None), sae_record("other", 7, 1)]
    saes[0]["probes"] = [{"name": "news", "n_test": 9, "scores": {"latents": {"accuracy": 0.75, "macro_f1": 0.7}}}]
    pairs = [pair_record("tiny", 7, sfr_live=None), pair_record("other", 7)]
    assert wandb_summary(results_of(saes, pairs), "tiny", "tiny") == {
        "eval/other/n_tokens/layers.7/seed_1": 96,
        "eval/other/fvu/layers.7/seed_1": 0.75,
        "eval/other/fvu_without_first_position/layers.7/seed_1": 0.31,
        "eval/other/ce_recovered/layers.7/seed_1": 0.9,
        "eval/other/dead_share/layers.7/seed_1": 0.125,
        "eval/tiny/n_tokens/layers.7/seed_1": 96,
        "eval/tiny/fvu_without_first_position/layers.7/seed_1": 0.31,
        "eval/tiny/ce_recovered/layers.7/seed_1": 0.9,
        "eval/tiny/dead_share/layers.7/seed_1": 0.125,
        "random_tokens/n_tokens/layers.7/seed_1": 2000,
        "random_tokens/ffr/layers.7/seed_1": 0.0125,
        "random_tokens/n_fake/layers.7/seed_1": 3,
        "probe/news/latents/layers.7/seed_1": 0.75,
        "agreement/sfr/layers.7/seeds_0_1": 0.5,
        "agreement/sfr_both/layers.7/seeds_0_1": 0.4,
        "agreement/sfr_top1/layers.7/seeds_0_1": 0.55,
        "agreement/sfr_floor/layers.7/seeds_0_1": 0.0,
        "agreement/mean_matched_cosine/layers.7/seeds_0_1": 0.71236,
    }


def test_what_a_stopped_run_left_unmeasured_is_left_out_of_the_summary():
    record = sae_record("tiny", 7, 1) | {"evaluations": [], "random_tokens": None}
    assert wandb_summary(results_of([record], []), "tiny", "tiny") == {}
