"""Sampling data sets from language models, and training and measuring SAEs on them. One job per module:

    errors          the exception that reaches users as one line
    paths           names of folders
    records         JSON records, written whole; versions; comparison of settings
    dependencies    is the installed `sparsify` EleutherAI's, and can it be compiled for a GPU?
    devices         --device and --dtype
    progress        token bars; what other libraries may print
    models          finding, loading, cutting and identifying language models
    seeding         one stream of uniform numbers per sample
    nucleus         exact top-p choice from one uniform number
    packed_attention    one new token over the cached ones, grouped heads packed
    packed_linear   weights in the layout that a CPU multiplies fastest
    kv_cache        key-value cache that grows in blocks
    memory          how many samples fit a device
    distributed     several processes started by torchrun
    sampling        decoding texts from BOS alone
    shards          a data set while it grows, and its last step
    quality         what a generated data set is like
    data_card       README.md of a generated data set
    generation      one generated data set from start to end
    expansion       how many latents an SAE gets
    plan            equal token budgets
    packing         token ids packed into training sequences
    sparse_coders   sparsify, imported quietly
    corpora         text corpora, read and tokenized
    sources         source data sets, found and packed
    passes          which SAEs are trained together, by memory
    cells           one cell of the target x source grid and its settings
    grid            from flags to cells
    adapters        what sparsify's trainer is handed in place of its own parts
    trainer         sparsify's trainer with exact resumption
    tracking        W&B and metrics.jsonl
    monitor         what is shown and recorded while training
    activations     outputs of layers, and what SAEs make of them
    evaluation      reconstruction of held-out activations
    finished        folders and records of finished SAEs
    training        the grid, cell by cell
    trained         finished SAEs, found and loaded
    splicing        what a model loses with a layer's output replaced
    random_tokens   features that fire on anything: the fake feature ratio
    contexts        what latents fire on
    matching        exact one-to-one matching of directions
    stability       agreement of SAEs from different seeds
    results         metrics.json, metrics.csv and arrays
    comparison      from finished SAEs to the results
    saelens_export  SAEs in SAELens' format
    findings        results, read again for the report
    answer          the sentences of the report
    drawing         looks of the figures
    plots           what is drawn in a figure
    figures         the figures, as PNG and SVG
    feature_data    data of the feature browser
    page            report.html
    report          tables on the terminal, numbers for W&B

Axis names, everywhere the same: `batch` (sequences or samples), `seq` (positions), `tokens` (= batch * seq), `vocab`,
`d_model` (residual width), `n_latents` (dictionary size), `k` (active latents per token).
"""
