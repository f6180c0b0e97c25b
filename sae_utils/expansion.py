"""How many latents an SAE gets: the same dictionary size for every model unless told otherwise."""

from dataclasses import dataclass

from sae_utils.errors import InputError, check_positive

EXPANSION_FACTORS = {"pythia-1.4b": 20, "pythia-2.8b": 16}
"""Latents per residual dimension; 20 x 2048 and 16 x 2560 are both 40,960 latents, so dictionaries compare."""

DEFAULT_N_LATENTS = 40_960

GPU_STEP = 8
"""Latents that sparsify's kernels on a GPU take at a time: any number that is not a multiple is an assertion there."""


@dataclass(frozen=True)
class DictionarySize:
    """How many latents SAEs get: by a factor or by number; the same for all models if nothing is given."""

    expansion_factor: int | None = None
    """Value of --expansion_factor, if given."""

    num_latents: int | None = None
    """Value of --num_latents, if given."""

    def __post_init__(self) -> None:
        check_positive(expansion_factor=self.expansion_factor, num_latents=self.num_latents)
        if self.expansion_factor is not None and self.num_latents is not None:
            raise InputError(
                f"--expansion_factor and --num_latents both set the dictionary size, got {self.expansion_factor} and "
                f"{self.num_latents}; give one of them"
            )

    def n_latents(self, model: str, d_model: int) -> int:
        """Number of latents for SAEs on a model.

        Args:
            model: Short name of the target model.
            d_model: Width of its residual stream.

        Returns:
            `num_latents`, else `expansion_factor * d_model`, else the table's factor times `d_model`, else 40,960.

        >>> DictionarySize().n_latents("pythia-1.4b", 2048), DictionarySize().n_latents("pythia-2.8b", 2560)
        (40960, 40960)
        """
        if self.num_latents is not None:
            return self.num_latents
        factor = self.expansion_factor if self.expansion_factor is not None else EXPANSION_FACTORS.get(model)
        return DEFAULT_N_LATENTS if factor is None else factor * d_model


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
