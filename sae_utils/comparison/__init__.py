"""Finished SAEs measured on every source, and matched with each other across seeds.

In: the folders that training left, and the sources that they name. Out: `metrics.json`, `metrics.csv` and arrays per
latent, to which every run adds what is not known yet. Its files in the order of use:

    trained         finished SAEs, found and loaded
    results         metrics.json, metrics.csv and arrays
    measuring       from finished SAEs to the results
    stability       agreement of SAEs from different seeds
    matching        exact one-to-one matching of directions
    saelens_export  SAEs in SAELens' format
"""
