"""The target x source grid: SAEs for all layers and seeds of a cell in one pass of the target model.

In: target models, packed sources, and the settings that decide the weights. Out: one folder per target, source and
seed, which appears when it is complete; until then, a folder of resumable state. Its files, from the whole to the
parts:

    grid        from flags to cells
    cells       one cell of the grid and its settings
    passes      which SAEs are trained together, by memory
    loop        the grid, cell by cell
    trainer     sparsify's trainer with exact resumption
    adapters    what sparsify's trainer is handed in place of its own parts
    monitor     what is shown and recorded while training
    tracking    W&B and metrics.jsonl
    finished    folders and records of finished SAEs
"""
