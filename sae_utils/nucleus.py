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

TOP_COUNTS = (512, 4096)
"""Most probable tokens looked at before a row is sorted in full; few nuclei of a trained model are wider than the first
number and next to none are wider than the second."""

ROWS_AT_ONCE = 32
"""Rows handled together on a CPU: 32 rows of 50,000 float32 probabilities are 6 MB, which the last-level cache
holds."""


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
    logits = logits.float()  # (batch, vocab)
    probs = torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
    tokens = _choose_from_probs(probs, uniforms, top_p)
    if temperature == 1.0:
        return tokens, -probs.gather(-1, tokens[:, None]).squeeze(-1).log()
    return tokens, torch.logsumexp(logits, dim=-1) - logits.gather(-1, tokens[:, None]).squeeze(-1)


def _choose_from_probs(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Tokens `(batch,)` from probabilities `(batch, vocab)`."""
    if top_p >= 1.0:
        return _invert_cdf(probs, uniforms)
    vocab = probs.shape[-1]
    tokens, is_found = _choose_among_top(probs, uniforms, min(TOP_COUNTS[0], vocab), top_p)
    for n_top in (*TOP_COUNTS[1:], vocab):
        rows = (~is_found).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        tokens[rows], is_found[rows] = _choose_among_top(probs[rows], uniforms[rows], min(n_top, vocab), top_p)
    return tokens


def _choose_among_top(probs: Tensor, uniforms: Tensor, n_top: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Tokens `(batch,)`, and for which rows the nucleus surely lies within the `n_top` most probable tokens."""
    values, ids = probs.topk(n_top, dim=-1, sorted=True)  # (batch, n_top), equal values in any order
    cumulative = values.double().cumsum(dim=-1)
    last = (cumulative < top_p).sum(dim=-1, keepdim=True).clamp(max=n_top - 1)  # place of the nucleus' last token
    edge = values.gather(-1, last)
    if n_top == probs.shape[-1]:
        is_found = torch.ones(len(probs), dtype=torch.bool, device=probs.device)
    else:  # a token as probable as the edge may have been left out of the top
        is_found = ((cumulative[:, -1:] >= top_p) & (values[:, -1:] < edge)).squeeze(-1)
    goal = _below(uniforms[:, None], cumulative.gather(-1, last))
    picked = torch.searchsorted(cumulative, goal, right=True)
    return _by_rank_among_equals(values, ids, picked), is_found


def _by_rank_among_equals(values: Tensor, ids: Tensor, picked: Tensor) -> Tensor:
    """The token `(batch,)` at place `picked` `(batch, 1)` of each row, once equal values stand in the order of their
    ids.
    """
    value = values.gather(-1, picked)
    first = (values > value).sum(dim=-1, keepdim=True)
    n_equal = (values == value).sum(dim=-1, keepdim=True)
    places = first + torch.arange(int(n_equal.max()), device=values.device)  # (batch, most equals)
    equals = ids.gather(-1, places.clamp(max=values.shape[-1] - 1))
    equals = equals.masked_fill(places >= first + n_equal, torch.iinfo(ids.dtype).max)
    return equals.sort(dim=-1).values.gather(-1, picked - first).squeeze(-1)


def _invert_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """First column at which a row's running sum exceeds `uniforms` times its total; never one of weight 0."""
    cumulative = weights.double().cumsum(dim=-1)
    return torch.searchsorted(cumulative, _below(uniforms[:, None], cumulative[:, -1:]), right=True).squeeze(-1)


def _below(uniforms: Tensor, total: Tensor) -> Tensor:
    """`uniforms * total`, kept below `total`, which rounding could otherwise reach."""
    return torch.minimum(uniforms.double() * total, torch.nextafter(total, torch.zeros_like(total)))
