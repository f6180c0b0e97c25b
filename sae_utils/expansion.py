"""How many latents an SAE gets: the same dictionary size for every model unless told otherwise."""

from sae_utils.errors import InputError

EXPANSION_FACTORS = {"pythia-1.4b": 20, "pythia-2.8b": 16}
"""Latents per residual dimension; 20 x 2048 and 16 x 2560 are both 40,960 latents, so dictionaries compare."""

DEFAULT_N_LATENTS = 40_960

GPU_STEP = 8
"""Latents that sparsify's kernels on a GPU take at a time: any number that is not a multiple is an assertion there."""


def choose_n_latents(model: str, d_model: int, *, expansion_factor: int | None, num_latents: int | None) -> int:
    """Number of latents for SAEs on this model.

    Args:
        model: Short name of the target model.
        d_model: Width of its residual stream.
        expansion_factor: Value of --expansion_factor, if given.
        num_latents: Value of --num_latents, if given.

    Returns:
        `num_latents`, else `expansion_factor * d_model`, else the table's factor times `d_model`, else 40,960.

    Raises:
        InputError: If both are given.

    >>> choose_n_latents("pythia-1.4b", 2048, expansion_factor=None, num_latents=None)
    40960
    >>> choose_n_latents("pythia-2.8b", 2560, expansion_factor=None, num_latents=None)
    40960
    """
    if expansion_factor is not None and num_latents is not None:
        raise InputError(
            f"--expansion_factor and --num_latents both set the dictionary size, got {expansion_factor} and "
            f"{num_latents}; give one of them"
        )
    if num_latents is not None:
        return num_latents
    if expansion_factor is None:
        expansion_factor = EXPANSION_FACTORS.get(model)
    return DEFAULT_N_LATENTS if expansion_factor is None else expansion_factor * d_model


def check_latents_on_gpu(n_latents: int, reference: str) -> None:
    """Refuse a number of latents that cannot be trained on a GPU.

    Raises:
        InputError: If it is not a multiple of 8.
    """
    if n_latents % GPU_STEP:
        below = n_latents // GPU_STEP * GPU_STEP
        nearest = " and ".join(str(n) for n in (below, below + GPU_STEP) if n)
        raise InputError(
            f"on a GPU the number of latents must be a multiple of {GPU_STEP}, got {n_latents} for {reference}; change "
            f"--num_latents or --expansion_factor, the nearest numbers are {nearest}"
        )
