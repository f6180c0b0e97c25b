"""Models, data sets and results that look good from afar, made from good ones in a trial's working folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DATA_SET, SAE_RUN = "datasets/tiny_42_1.0_0.9", "checkpoints/tiny_from_tiny_seed_0/run.json"

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 548105171\n"


def own_copy(place: Path) -> Path:
    """The model `tiny`, as a copy of its own instead of a link."""
    model = place / "tiny"
    if model.is_symlink():
        source = model.resolve()
        model.unlink()
        shutil.copytree(source, model)
    return model


def change_weights(place: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of the model `tiny` in place."""
    path = own_copy(place) / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    """Change a record in place."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=2) + "\n")


def set_weight(name: str, value: float) -> Callable[[Path], None]:
    """What fills the first row of the first weight whose name ends like this."""

    def fill(weights: dict[str, torch.Tensor]) -> None:
        next(weight for key, weight in sorted(weights.items()) if key.endswith(name))[0] = value

    return lambda place: change_weights(place, fill)


def drop_weight(place: Path) -> None:
    """A layer's weight is not in the file."""
    change_weights(place, lambda weights: weights.pop(next(key for key in weights if "layers.1.mlp" in key)))


def widen_weight(place: Path) -> None:
    """A layer's weight has another shape."""

    def widen(weights: dict[str, torch.Tensor]) -> None:
        key = next(key for key in weights if key.endswith("layers.1.mlp.dense_h_to_4h.weight"))
        weights[key] = torch.zeros(3, 5)

    change_weights(place, widen)


def shrink_vocabulary(place: Path) -> None:
    """The model knows fewer ids than its tokenizer gives."""

    def cut(weights: dict[str, torch.Tensor]) -> None:
        for key in [key for key in weights if "embed" in key]:
            weights[key] = weights[key][:100].clone()

    change_weights(place, cut)
    change_json(place / "tiny/config.json", lambda config: config.update(vocab_size=100))


def change_config(**fields: object) -> Callable[[Path], None]:
    """What changes fields of the model's configuration."""
    return lambda place: change_json(own_copy(place) / "config.json", lambda config: config.update(fields))


def become_other_model(kind: str) -> Callable[[Path], None]:
    """What puts a model of another kind there, with the same tokenizer."""

    def become(place: Path) -> None:
        import transformers

        config = {
            "bert": lambda: transformers.BertConfig(
                vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
            ),
            "t5": lambda: transformers.T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        }[kind]()
        model = own_copy(place)
        (model / "model.safetensors").unlink()
        classes = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration"}
        getattr(transformers, classes[kind])(config).save_pretrained(model)

    return become


def rewrite(name: str, data: str | None) -> Callable[[Path], None]:
    """What writes a file of the model, or removes it."""

    def write(place: Path) -> None:
        path = own_copy(place) / name
        path.unlink()
        if data is not None:
            path.write_text(data)

    return write


def change_data_set(change: Callable[[dict[str, list]], object]) -> Callable[[Path], None]:
    """What writes the data set anew with other columns, its record as it was."""

    def write(place: Path) -> None:
        from datasets import Dataset

        folder = place / DATA_SET
        columns = Dataset.load_from_disk(str(folder)).to_dict()
        record = (folder / "generation.json").read_text()
        change(columns)
        shutil.rmtree(folder)
        Dataset.from_dict(columns).save_to_disk(str(folder))
        (folder / "generation.json").write_text(record)

    return write


def change_record(path: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """What changes a record in the working folder."""
    return lambda place: change_json(place / path, change)


def put_file(path: str, text: str) -> Callable[[Path], None]:
    """What puts a file into the working folder."""

    def put(place: Path) -> None:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)

    return put


def remove(path: str) -> Callable[[Path], None]:
    """What removes a folder, or a link to one, from the working folder."""

    def gone(place: Path) -> None:
        if (place / path).is_symlink():
            (place / path).unlink()
        else:
            shutil.rmtree(place / path)

    return gone


def give_away(folder: Path) -> None:
    """Let everybody use a trial's folder, and let its path be passed."""
    for here, _, files in os.walk(folder):
        Path(here).chmod(0o777)
        for name in files:
            if not (Path(here) / name).is_symlink():
                (Path(here) / name).chmod(0o666)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o055)


MODELS: dict[str, Callable[[Path], object]] = {
    "gone": remove("tiny"),
    "weights are NaN": set_weight("dense_h_to_4h.weight", float("nan")),
    "weights are infinite": set_weight("dense_h_to_4h.weight", float("inf")),
    "weights are not there": rewrite("model.safetensors", None),
    "weights are a pointer": rewrite("model.safetensors", LFS_POINTER),
    "a weight is missing": drop_weight,
    "a weight has another shape": widen_weight,
    "tokenizer is not there": rewrite("tokenizer.json", None),
    "tokenizer is a pointer": rewrite("tokenizer.json", LFS_POINTER),
    "vocabulary is too small": shrink_vocabulary,
    "type is unknown": change_config(model_type="something_new"),
    "type is none": change_config(model_type=None),
    "code is its own": change_config(auto_map={"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}, model_type="m"),
    "no layers": change_config(num_hidden_layers=0),
    "width does not fit": change_config(hidden_size=17),
    "width is a word": change_config(hidden_size="wide"),
    "more layers than weights": change_config(num_hidden_layers=3),
    "BERT": become_other_model("bert"),
    "T5": become_other_model("t5"),
}
"""What makes of the model `tiny` one that cannot be used."""

DATA_SETS: dict[str, Callable[[Path], object]] = {
    "no rows": change_data_set(lambda columns: [column.clear() for column in columns.values()]),
    "no input_ids": change_data_set(lambda columns: columns.pop("input_ids")),
    "ids beyond the vocabulary": change_data_set(lambda columns: columns["input_ids"][0].append(10**6)),
    "negative ids": change_data_set(lambda columns: columns["input_ids"][0].append(-1)),
    "ids are words": change_data_set(lambda columns: columns.update(input_ids=columns["text"])),
    "older record": change_record(f"{DATA_SET}/generation.json", lambda record: record.pop("fingerprint")),
    "record without settings": change_record(f"{DATA_SET}/generation.json", lambda record: record.pop("settings")),
    "gone": remove("datasets"),
}
"""What makes of the data set one that cannot be trained on."""

RESULTS: dict[str, Callable[[Path], object]] = {
    "somebody's metrics.json": put_file("results/metrics.json", '{"accuracy": 0.9}\n'),
    "somebody's list in metrics.json": put_file("results/metrics.json", "[0.9]\n"),
    "somebody's metrics.csv": put_file("results/metrics.csv", "accuracy\n0.9\n"),
    "somebody's report.html": put_file("results/report.html", "<p>mine</p>\n"),
    "source leads outside": change_record(
        SAE_RUN, lambda run: [sae.update(source="../../outside") for sae in run["saes"]]
    ),
    "target leads outside": change_record(
        SAE_RUN, lambda run: [sae.update(target="../../outside") for sae in run["saes"]]
    ),
    "SAEs of another layer": change_record(SAE_RUN, lambda run: [sae.update(layer=7) for sae in run["saes"]]),
    "run without settings": change_record(SAE_RUN, lambda run: run.pop("settings")),
    "data set gone": remove("datasets"),
    "model gone": remove("tiny"),
}
"""What makes finished SAEs impossible to compare, or results impossible to write."""
