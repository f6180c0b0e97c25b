"""Text that a language model says when it is given nothing but its beginning-of-sequence token.

In: a model, what decides each sample (seed, temperature, top_p, longest length), and how much of it. Out: a Hugging
Face data set with its record and its card, and while it grows a folder of finished samples that any later run goes on
from. Its files, from the whole to the parts:

    job               one data set from start to end
    record            what each sample depends on, and generation.json
    rounds            sampling until there is enough, in batches as large as memory allows
    sampling_rate     how fast samples were made
    dataset_size      bytes on the disk, in the end and on the way
    expected          what is known of a data set before it is sampled
    timed_batch       a few real steps, timed on request
    unsampled         the plan, and what is left, how long it takes
    shards            a data set while it grows, and its last step
    rows              its rows: made, cut to an exact number of tokens, written
    sample_memory     how many samples fit a device together
    sampling          decoding texts from BOS alone
    nucleus           exact top-p choice from one uniform number
    kv_cache          key-value cache that grows in blocks
    fused_layers      decoder layers with fewer operations between the products
    packed_attention  one new token over the cached ones, grouped heads packed
    packed_linear     weights in the layout that a CPU multiplies fastest
    quality           what a generated data set is like
    data_card         README.md of a generated data set
"""
