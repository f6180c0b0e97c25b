"""How fast the parts of a comparison were on a device, kept beside the results for plans to come."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sae_utils.comparison.cost import REST, Work
from sae_utils.comparison.outlook import MATCHING, RECONSTRUCTION, Outlook
from sae_utils.rates import Rate, keep_rate


@contextlib.contextmanager
def timed_work(
    folder: Path, work: Work, outlook: Outlook, device: torch.device, *, has_more: bool = False
) -> Iterator[None]:
    """While open, the SAEs of a target are compared; the rates of what was new are kept behind it.

    What is neither measured nor matched is a rate only where all was new.

    Args:
        folder: Of the results.
        work: All that there is to do.
        outlook: Counts what is done.
        device: Where.
        has_more: Whether something else is done meanwhile, which no plan counts.
    """
    before, began, is_all_new = _done(outlook), time.monotonic(), False
    yield
    left_sec = time.monotonic() - began
    for kind, (n_units, sec) in _done(outlook).items():
        n_before, sec_before = before.get(kind, (0.0, 0.0))
        n_units, sec = n_units - n_before, sec - sec_before
        left_sec -= sec
        if kind == MATCHING:
            n_units /= work.n_latents**2
        if round(n_units) and sec > 0:
            keep_rate(folder, work.about(kind, device), Rate(round(n_units), sec))
        is_all_new |= kind == RECONSTRUCTION and n_units >= work.n_saes * work.n_eval_tokens
    if is_all_new and not has_more and left_sec > 0:
        keep_rate(folder, work.about(REST, device), Rate(work.n_saes, left_sec))


def _done(outlook: Outlook) -> dict[str, tuple[float, float]]:
    """Units and seconds so far, by kind of work."""
    return {kind: (pace.n_units, pace.elapsed_sec) for kind, pace in outlook.paces.items()}
