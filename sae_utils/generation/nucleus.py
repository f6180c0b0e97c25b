"""Exact nucleus (top-p) sampling from one uniform number per row, sorting only what it must.

The nucleus of a row is the smallest set of its most probable tokens whose probabilities add up to at least `top_p`.
Tokens stand in the order of falling probability, equally probable ones in the order of their ids, and a token is drawn
by inverting the cumulative distribution: the number `u` picks the first token at which the running sum exceeds `u`
times the nucleus' mass. (With `top_p` 1 all tokens are in, and they stand in the order of their ids: nothing needs to
be sorted.) These rules are fixed, so the same number always picks the same token, however the nucleus was found.

Source: Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1; the same set as
`TopPLogitsWarper` in transformers, up to rounding and the order of ties.
"""

import torch
from torch import Tensor

CANDIDATE_FLOORS = (3e-5, 1e-6)
"""Tokens more probable than this are looked at before a row is sorted in full. In texts of SmolLM2-135M, 850 of 49,152
tokens are above the first floor on average, and they hold the nucleus of nearly every row at `top_p` 0.9."""

ROWS_AT_ONCE = 32
"""Rows handled together on a CPU: 32 rows of 50,000 float32 probabilities are 6 MB, which the last-level cache
holds."""

SORTED_ROWS = 64
"""Rows sorted in full together: sorting takes several times the memory of what is sorted."""


def choose_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row from the truncated distribution.

    Args:
        logits: Next-token logits, `(batch, vocab)`, any float type.
        uniforms: Numbers in [0, 1), float64 `(batch,)`.
        temperature: Divides the logits, > 0.
        top_p: Nucleus mass, in (0, 1]; 1.0 keeps the whole distribution.

    Returns:
        Token ids, int64 `(batch,)`, and their negative log-likelihoods in nats under the model's own distribution
        (temperature 1, nothing cut off), float32 `(batch,)`.
    """
    n_rows = ROWS_AT_ONCE if logits.device.type == "cpu" else len(logits)
    chosen = [
        _choose_rows(rows, numbers, temperature, top_p)
        for rows, numbers in zip(logits.split(n_rows), uniforms.split(n_rows), strict=True)
    ]
    tokens, nlls = zip(*chosen, strict=True)
    return torch.cat(tokens), torch.cat(nlls)


def choose_among(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float, n_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`choose_tokens` for a device that must not be asked: shapes do not depend on what the tensors hold.

    Only the most probable tokens are looked at. Whether they were enough stays on the device, to be read when it is
    convenient; where they were not, what was chosen is not to be used.

    Args:
        logits: Next-token logits, `(batch, vocab)`, any float type.
        uniforms: Numbers in [0, 1), float64 `(batch,)`.
        temperature: Divides the logits, > 0.
        top_p: Nucleus mass, in (0, 1].
        n_candidates: Tokens looked at; as many as there are, or more, are always enough.

    Returns:
        Token ids and their negative log-likelihoods, as of `choose_tokens`; and for which rows the candidates held the
        whole nucleus, bool `(batch,)`.
    """
    logits, probs = _probabilities(logits, temperature)
    if top_p >= 1.0:
        tokens, is_whole = _invert_cdf(probs, uniforms), torch.ones(len(probs), dtype=torch.bool, device=probs.device)
    elif n_candidates >= probs.shape[-1]:
        parts = zip(probs.split(SORTED_ROWS), uniforms.split(SORTED_ROWS), strict=True)
        tokens = torch.cat([_choose_fully_sorted(rows, numbers, top_p) for rows, numbers in parts])
        is_whole = torch.ones(len(probs), dtype=torch.bool, device=probs.device)
    else:
        tokens, is_whole = _choose_from_top(probs, uniforms, top_p, n_candidates)
    return tokens, _negative_log_likelihood(logits, probs, tokens, temperature), is_whole


def truncated_distribution(logits: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """The distribution that `choose_tokens` draws from, by a full sort.

    Args:
        logits: Next-token logits of one row, `(vocab,)`.
        temperature: Divides the logits, > 0.
        top_p: Nucleus mass, in (0, 1].

    Returns:
        Probabilities, float64 `(vocab,)`, 0 outside the nucleus.
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1).double()
    if top_p >= 1.0:
        return probs / probs.sum()
    values, order = probs.sort(descending=True, stable=True)
    n_kept = int((values.cumsum(dim=-1) < top_p).sum()) + 1
    kept = torch.zeros_like(probs)
    kept[order[:n_kept]] = values[:n_kept]
    return kept / kept.sum()


def _choose_rows(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """`choose_tokens` for few enough rows that their probabilities stay in the processor's cache."""
    logits, probs = _probabilities(logits, temperature)
    tokens = _choose_from_probs(probs, uniforms, top_p)
    return tokens, _negative_log_likelihood(logits, probs, tokens, temperature)


def _probabilities(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits in float32, and probabilities at a temperature, both `(batch, vocab)`."""
    logits = logits.float()
    return logits, torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def _negative_log_likelihood(logits: Tensor, probs: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Of tokens `(batch,)`, under the model's own distribution."""
    if temperature == 1.0:
        return -probs.gather(-1, tokens[:, None]).squeeze(-1).log()
    return torch.logsumexp(logits, dim=-1) - logits.gather(-1, tokens[:, None]).squeeze(-1)


def _choose_from_probs(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Tokens `(batch,)` from probabilities `(batch, vocab)`."""
    if top_p >= 1.0:
        return _invert_cdf(probs, uniforms)
    tokens = torch.empty(len(probs), dtype=torch.long, device=probs.device)
    rows = torch.arange(len(probs), device=probs.device)  # those whose nucleus has not been found
    for floor in CANDIDATE_FLOORS:
        values, ids = _candidates(probs, floor)
        chosen, is_whole, _ = _choose_sorted(values, ids, uniforms, top_p)
        tokens[rows[is_whole]] = chosen[is_whole]
        if is_whole.all():
            return tokens
        rows, probs, uniforms = rows[~is_whole], probs[~is_whole], uniforms[~is_whole]
    tokens[rows] = _choose_fully_sorted(probs, uniforms, top_p)
    return tokens


def _choose_fully_sorted(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Tokens `(batch,)` from probabilities `(batch, vocab)`, all of them in order."""
    values, ids = probs.sort(dim=-1, descending=True, stable=True)
    return _choose_sorted(values, ids, uniforms, top_p)[0]


def _choose_from_top(probs: Tensor, uniforms: Tensor, top_p: float, n_candidates: int) -> tuple[Tensor, Tensor]:
    """Tokens `(batch,)` from the most probable ones, and for which rows these hold the whole nucleus for certain."""
    values, ids = probs.topk(n_candidates, dim=-1, sorted=False)
    ids, by_id = ids.sort(dim=-1)  # so that equal probabilities end up in the order of their ids
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)
    tokens, is_whole, last = _choose_sorted(values, ids, uniforms, top_p)
    # Which of several equal probabilities are the last candidates is left to chance: the nucleus has to end before.
    return tokens, is_whole & (values.gather(-1, last) > values[:, -1:]).squeeze(-1)


def _candidates(probs: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Every token more probable than `floor`, in the order of falling probability, equal ones in that of their ids.

    Returns:
        Probabilities and ids, `(batch, most candidates of a row)`; rows with fewer end in zeros.
    """
    rows, ids = (probs > floor).nonzero(as_tuple=True)  # by row, then by id
    counts = torch.bincount(rows, minlength=len(probs))
    places = torch.arange(len(rows), device=probs.device) - (counts.cumsum(0) - counts)[rows]
    shape = len(probs), max(1, int(counts.max()))
    values = torch.zeros(shape, device=probs.device)
    values[rows, places] = probs[rows, ids]
    padded_ids = torch.zeros(shape, dtype=torch.long, device=probs.device)
    padded_ids[rows, places] = ids
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, padded_ids.gather(-1, order)


def _choose_sorted(values: Tensor, ids: Tensor, uniforms: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `(batch,)` from sorted probabilities, for which rows they hold the whole nucleus, and where it ends.

    The end is the column of the nucleus' last token, or of the last one there is, `(batch, 1)`.
    """
    cumulative = values.double().cumsum(dim=-1)
    last = (cumulative < top_p).sum(dim=-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    goal = _below(uniforms[:, None], cumulative.gather(-1, last))
    picked = torch.searchsorted(cumulative, goal, right=True)
    tokens = ids.gather(-1, picked.clamp(max=values.shape[-1] - 1)).squeeze(-1)
    return tokens, cumulative[:, -1] >= top_p, last


def _invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """First column at which a row's running sum exceeds `uniforms` times its total; never one of weight 0."""
    cumulative = weights.double().cumsum(dim=-1)
    picked = torch.searchsorted(cumulative, _below(uniforms[:, None], cumulative[:, -1:]), right=True).squeeze(-1)
    # Behind the end of a row of NaN alone, which its likelihood then shows: an index that does not exist ends a GPU.
    return picked.clamp(max=weights.shape[-1] - 1)


def _below(uniforms: Tensor, total: Tensor) -> Tensor:
    """`uniforms * total`, kept below `total`, which rounding could otherwise reach."""
    return torch.minimum(uniforms.double() * total, torch.nextafter(total, torch.zeros_like(total)))
