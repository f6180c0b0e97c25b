"""EleutherAI's sparsify, imported without what it prints on import."""

import contextlib
import io

from sae_utils.dependencies import check_sparsify

check_sparsify()
with contextlib.redirect_stdout(io.StringIO()):
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
    from sparsify.data import chunk_and_tokenize
    from sparsify.muon import Muon
    from sparsify.sparse_coder import ForwardOutput

__all__ = ["ForwardOutput", "Muon", "SparseCoder", "SparseCoderConfig", "TrainConfig", "Trainer", "chunk_and_tokenize"]
