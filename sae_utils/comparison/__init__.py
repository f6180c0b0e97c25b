"""Finished SAEs measured on every source, and matched with each other across seeds and sources.

In: the folders that training left, and the sources that they name. Out: `metrics.json`, `metrics.csv` and arrays per
latent, to which every run adds what is not known yet. Its files in the order of use:

    trained         finished SAEs, found and loaded
    whereabouts     the models and data sets that they name, found again
    results         metrics.json, metrics.csv and arrays
    merging         SAEs and results of several folders, put together
    groups          SAEs that are measured together, as many at a time as memory allows
    sharing_out     SAEs measured by several processes, each its part
    outlook         how far it has got, in one line
    cost            what it takes, before it starts
    speed           how fast its parts were
    measuring       every SAE on every source and on random tokens
    firing          what latents do on other sources than their own
    probes          every SAE on labelled texts
    pairs           every two SAEs of a target and layer, matched
    lookahead       what is before it, counted for that line
    agreement       how much of one SAE comes back in another
    matching        exact one-to-one matching of directions
    subspaces       do directions come back together that do not come back alone?
    floors          the same of untrained SAEs
    coactivation    what matched latents do on the same tokens
    stability       how often each latent comes back, and what those that do are worth
    across          agreement between sources held against that within them
    features        what the feature browser shows of each SAE
    saelens_export  SAEs in SAELens' format
"""
