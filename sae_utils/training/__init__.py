"""The target x source grid: SAEs for all layers and seeds of a cell in one pass of the target model.

In: target models, packed sources, and the settings that decide the weights. Out: one folder per target, source and
seed, which appears when it is complete; until then, a folder of resumable state. Its files, from the whole to the
parts:

    settings    what, beside target, source and seed, decides the weights
    cells       one cell of the grid
    grid        from what is asked for to the cells
    passes      which SAEs are trained together, by memory
    machines    devices and processes, and how they share the work
    checkpoint_size  bytes on the disk, in the end and on the way
    room        do memory and disk hold what is planned?
    folders     where SAEs are kept, in the making and finished
    remaining   what is left to train of a cell: seeds, layers
    variants    settings side by side: names of what is trained in another way
    loop        the grid, cell by cell
    extension   larger budgets, from where smaller ones ended
    single_pass some SAEs trained together, measured, written
    trainer     sparsify's trainer with exact resumption
    kept        SAEs kept on the way to a larger budget
    adapters    what sparsify's trainer is handed in place of its own parts
    speed       how fast passes were
    timed_pass  a few real steps, timed on request
    status      what of a grid is there, what is left, how long it takes
    monitor     what is shown and recorded while training
    tracking    W&B and metrics.jsonl
    wandb_runs  W&B runs, started and added to
    comparison_runs  W&B runs of comparisons: tables, and an artefact
    wandb_login where W&B runs can go, found out first
    model_card  what a hub shows of finished SAEs, made from their records
    finished    records of finished SAEs, and the step that publishes them
"""
