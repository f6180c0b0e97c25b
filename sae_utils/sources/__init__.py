"""What SAEs are trained on: data sets found, packed, and the same amount of each.

In: the folders of generated data sets, text corpora, and a target model's tokenizer. Out: packed sequences of token
ids, memory-mapped, and how many of them every SAE is trained on and measured on. Its files in the order of use:

    catalog     source data sets, found and packed
    origins     one source: what it is of, and how much
    corpora     text corpora, read whole
    streams     corpora read from their beginning, or from a place in them
    excerpts    the beginning of a corpus, kept on disk
    ids         corpora of token ids: of which tokenizer
    labelled    labelled texts, for probes
    pieces      parts of that, and what they are measured in
    documents   the documents of a source as token ids
    joining     documents joined into rows, by one rule for all
    packing     rows on disk, handed out for training and evaluation
    packs       packed sequences on disk, each with its record
    controls    sources made of others
    assumed     data sets that are not there yet, in plans
    budget      equal token budgets
"""
