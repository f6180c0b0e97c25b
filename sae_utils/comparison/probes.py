"""Probes of finished SAEs on labelled texts: what is not known yet, written as soon as an SAE is done."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae_utils.comparison.groups import Group
from sae_utils.comparison.measuring import converged
from sae_utils.comparison.results import Results
from sae_utils.comparison.trained import TrainedSae
from sae_utils.errors import NonFiniteError, remedy_for_non_finite
from sae_utils.evaluation.last_tokens import LastStates, encode_states, last_states
from sae_utils.evaluation.probing import MAX_STEPS, majority_share, score_dense, score_sae, split_texts
from sae_utils.models import LoadedModel
from sae_utils.sources.documents import tokenized_documents
from sae_utils.sources.labelled import LabelledTexts

logger = logging.getLogger(__name__)


def probe(group: Group, datasets: Sequence[LabelledTexts], results: Results) -> None:
    """Add what is not known yet of the SAEs of a group on labelled texts; those that have diverged are left out."""
    for labelled in datasets:
        saes = [sae for sae in converged(group.saes, results) if not is_known(results, sae, labelled)]
        if saes:
            probe_on(group, saes, labelled, results)


def is_known(results: Results, sae: TrainedSae, labelled: LabelledTexts) -> bool:
    """Whether an SAE, with the weights it has now, was probed on these texts and labels."""
    known = results.saes[sae.key].get("probes", [])
    return (labelled.name, labelled.fingerprint) in [(each["name"], each["fingerprint"]) for each in known]


def probe_on(group: Group, saes: Sequence[TrainedSae], labelled: LabelledTexts, results: Results) -> None:
    """Probe SAEs on one data set; the hidden state of a layer is probed once for all of its SAEs.

    Raises:
        NonFiniteError: If the model, or an SAE, gives NaN or infinity on a text.
    """
    target = group.load_target()
    split = split_texts(labelled.classes)
    about = {
        "name": labelled.name,
        "fingerprint": labelled.fingerprint,
        "n_classes": labelled.n_classes,
        "n_train": len(split.train),
        "n_test": len(split.test),
        "majority_share": majority_share(labelled.classes, split),
    }
    for hookpoint, states in states_of(group, saes, labelled, target).items():
        x = states.x.float().numpy()
        _check_finite(x, f"{group.name} at {hookpoint}", labelled, saes[0])
        of_layer = {"hidden_state": score_dense(x, labelled.classes, split)}
        for hooked in group.in_memory([sae for sae in saes if sae.hookpoint == hookpoint], target):
            for key, (_, sae) in hooked.items():
                record = results.saes[key]
                encoded = encode_states(sae, states)
                _check_finite(encoded.x_hat, record["path"], labelled, saes[0])
                scores = of_layer | score_sae(encoded, labelled.classes, split)
                _say_what_is_unfinished(scores, record, labelled)
                others = [each for each in record.get("probes", []) if each["name"] != labelled.name]
                record["probes"] = sorted([*others, about | {"scores": scores}], key=lambda each: each["name"])
                results.changed.add(key[:2])
                results.save()


def states_of(
    group: Group, saes: Sequence[TrainedSae], labelled: LabelledTexts, target: LoadedModel
) -> dict[str, LastStates]:
    """What the SAEs' layers hold at the last token of each text, by name of the layer.

    A text is BOS and its own tokens, cut after `--ctx_len` in all; no EOS follows.
    """
    ctx_len = saes[0].run["settings"]["ctx_len"]
    bos = np.array([target.bos_id], np.int32)
    documents = tokenized_documents(labelled.texts, target.tokenizer)
    texts = [np.concatenate([bos, ids[: ctx_len - 1]]) for some in documents for ids in some]
    with group.bar(f"probed on {labelled.name}", sum(map(len, texts))) as bar:
        states = last_states(
            target.model,
            list(dict.fromkeys(sae.hookpoint for sae in saes)),
            texts,
            n_tokens_at_once=group.settings.batch_size * ctx_len,
            exclusion=group.exclusion,
            on_tokens=bar.update,
        )
    if n_left_out := int((~torch.stack([each.is_kept for each in states.values()])).any(dim=0).sum()):
        logger.warning(
            "%s: --exclude leaves out every position of %s texts; no latent fires on them",
            labelled.name,
            f"{n_left_out:,}",
        )
    return states


def _check_finite(values: np.ndarray, whose: str, labelled: LabelledTexts, sae: TrainedSae) -> None:
    """Refuse NaN and infinity, of which no probe can learn.

    Raises:
        NonFiniteError: If there are any.
    """
    if not np.isfinite(values).all():
        dtype = sae.run["settings"]["dtype"]
        raise NonFiniteError(
            f"{whose} gives NaN or infinity on a text of {labelled.name} in {dtype}, so nothing can be probed; "
            f"{remedy_for_non_finite(dtype)}, or leave the text out"
        )


def _say_what_is_unfinished(scores: dict[str, dict[str, Any]], record: dict[str, Any], labelled: LabelledTexts) -> None:
    """Name the probes whose fit had not converged: another step would change them."""
    if unfinished := [name for name, each in scores.items() if each["n_steps"] >= MAX_STEPS]:
        logger.warning(
            "%s on %s: not converged after %s steps: %s",
            *(record["path"], labelled.name, f"{MAX_STEPS:,}", ", ".join(unfinished)),
        )
