"""What SAEs do to a model's activations: how well it reconstructs them, what that costs, what it fires on.

In: a model, SAEs with the layers that they read, and packed sequences. Out: numbers and arrays per SAE; nothing is
written. All of it is streamed, one pass of the model for all SAEs. Its files:

    activations     outputs of layers, and what SAEs make of them
    reconstruction  fraction of variance unexplained, dead latents, firing rates
    splicing        what a model loses with a layer's output replaced
    codes           what matched latents of two SAEs do on the same tokens
    random_tokens   features that fire on anything: the fake feature ratio
    positions       numbers by position in the sequence
    contexts        what latents fire on
    last_tokens     what layers hold at the last token of each text
    probing         how well logistic regression tells classes by it
    intervals       how far a number may be off because of what it was counted on
"""
