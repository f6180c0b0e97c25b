"""Finished SAEs measured on every source, and matched with each other across seeds.

In: the folders that training left, and the sources that they name. Out: `metrics.json`, `metrics.csv` and arrays per
latent, to which every run adds what is not known yet. Its files in the order of use:

    trained         finished SAEs, found and loaded
    whereabouts     the models and data sets that they name, found again
    results         metrics.json, metrics.csv and arrays
    groups          SAEs that are measured together, as many at a time as memory allows
    measuring       every SAE on every source and on random tokens
    pairs           every two seeds, matched
    stability       agreement of two SAEs
    matching        exact one-to-one matching of directions
    features        what the feature browser shows of each SAE
    saelens_export  SAEs in SAELens' format
"""
