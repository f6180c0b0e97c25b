"""A small language model of Pythia's architecture, taught a text that we know.

    python studies/own_text/teach.py study_output/small/texts --seed 0 --model study_output/small/coder

Every row that it sees is BOS and what follows somewhere in the text, so that what it says after BOS is like any place
of the text, and not like the first lines of its documents. The same command goes on from the last checkpoint; weights
of a run that was stopped are other ones than those of an unbroken run, which are the same each time.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import (
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

ROW = 256
"""Tokens of a row, BOS included: the model's context."""

SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
"""Of the model, which has 1.3 million parameters."""

N_MEASURED = 1000
"""Rows whose mean loss is recorded, of what was taught and of what was held out."""


def main() -> None:
    """Teach, measure, save."""
    args = parse_args()
    if (args.model / "config.json").exists():
        print(f"{args.model} is there")
        return
    tokenizer = AutoTokenizer.from_pretrained(args.texts / "tokenizer")
    taught, held_out = (rows_of(args.texts / f"{name}.jsonl", tokenizer) for name in ("taught", "held_out"))
    unfinished = args.model.with_name(f"{args.model.name}.unfinished")
    set_seed(args.seed)
    trainer = Trainer(new_model(tokenizer), settings(args, unfinished), collate, TensorDataset(taught))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(unfinished) if unfinished.exists() else None)
    losses = {
        name: round(trainer.evaluate(TensorDataset(rows[:N_MEASURED]))["eval_loss"], 3)
        for name, rows in (("taught", taught), ("held_out", held_out))
    }
    print(f"{args.model}: nats per token {losses}")
    tokenizer.save_pretrained(unfinished)
    trainer.save_model(unfinished)
    (unfinished / "losses.json").write_text(json.dumps(losses) + "\n")
    unfinished.rename(args.model)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, help="folder that texts.py has written")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, made")
    parser.add_argument("--seed", type=int, default=0, help="of its first weights and of the order of the rows")
    parser.add_argument("--epochs", type=float, default=1.0)
    return parser.parse_args()


def rows_of(path: Path, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """A text cut into rows of BOS and `ROW` - 1 tokens, EOS behind every document, int64 `(rows, ROW)`."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    ids = [[*each, tokenizer.eos_token_id] for each in tokenizer(texts)["input_ids"]]
    stream = torch.tensor([token for document in ids for token in document])
    rows = stream[: len(stream) // (ROW - 1) * (ROW - 1)].view(-1, ROW - 1)
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)


def new_model(tokenizer: PreTrainedTokenizerBase) -> GPTNeoXForCausalLM:
    """Random weights."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=ROW, **SHAPE, **ends))


def settings(args: argparse.Namespace, folder: Path) -> TrainingArguments:
    """How it is taught."""
    return TrainingArguments(
        folder,
        seed=args.seed,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.1,
        adam_beta2=0.95,
        save_steps=100,
        save_total_limit=1,
        logging_steps=100,
        report_to="none",
        use_cpu=True,
    )


def collate(rows: list[tuple[Tensor]]) -> dict[str, Tensor]:
    """A batch; the model itself shifts labels by one."""
    batch = torch.stack([row for (row,) in rows])
    return {"input_ids": batch, "labels": batch}


if __name__ == "__main__":
    main()
