"""Sampling data sets from language models, training SAEs on them, and comparing what was trained.

One folder per step of a study, each with its own list of files, in the order in which they are read:

    generation    text that a model says when it is given nothing
    sources       what SAEs are trained on: data sets found, packed, and the equal budget
    evaluation    what one SAE does to a model's activations
    training      the target x source grid, on sparsify's trainer
    comparison    finished SAEs measured, and matched with each other
    report        results for people: tables, figures, a page
    sharing       what is finished, sent to a hub and fetched from one

Each of them knows only this folder and what stands above it in this list, and not even all of that: generation knows
none of the others, and none knows generation, nor sharing. Here lies what several of them share:

    errors          the exception that reaches users as one line
    command_line    flags of both scripts, how help looks, how a script ends
    paths           names of folders and files
    disk            places to write to: may we, is there room, what to say where it ran out
    files           files of ours: written whole, read back, found damaged
    records         what stands in records: versions, the commit, settings that must not change
    generated_data  a generated data set on disk: columns, record, shorter forms
    locks           one run at a time for a data set, a cell, results
    distributed     several processes started by torchrun
    shared_folders  is a folder the same one for all of them?
    devices         --device and --dtype
    memory          how much is free, what SAEs take of it, what to do when it was not enough
    stopping        Ctrl-C, SIGTERM, SIGHUP: what can be kept is kept
    rates           how fast a device was, for plans
    progress        token bars; what other libraries may print
    model_files     what lies in a model's folder, or one line on what is wrong with it
    model_checks    models found unfit: configuration, weights, tokenizer, before anything large is loaded
    models          finding, loading, cutting and identifying language models
    planned_models  models of which a plan has config.json alone
    hookpoints      what of a layer is encoded, by family of models
    seeding         one stream of uniform numbers per sample
    exclusion       positions that SAEs neither learn from nor are measured on
    expansion       how many latents an SAE gets
    dependencies    is the installed `sparsify` EleutherAI's, and can it be compiled for a GPU?
    sparse_coders   sparsify, imported quietly

Axis names, everywhere the same: `batch` (sequences or samples), `seq` (positions), `tokens` (= batch * seq), `vocab`,
`d_model` (residual width), `n_latents` (dictionary size), `k` (active latents per token).
"""
