"""A generated data set while it grows: finished samples in shards, put together into one Arrow data set at the end.

    <name>.unfinished/settings.json                what every sample in it was made with
    <name>.unfinished/batches.json                 how many were decoded together
    <name>.unfinished/samples_<first>_<stop>_<tokens>.arrow    samples first .. stop - 1, complete or absent
    <name>/                                        the finished data set, moved here in one step

A killed run leaves its shards; the next one counts them and goes on with the first sample that is missing.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from sae_utils.errors import InputError
from sae_utils.files import (
    Record,
    being_removed,
    check_file,
    checksum_file,
    checksum_files,
    holds_something,
    read_record,
    reading,
    removal,
    remove_folder,
    write_record,
    written_folder,
    written_whole,
)
from sae_utils.generated_data import FEATURES, RECORD_FILE, open_samples, read_generation_record
from sae_utils.generation.rows import ROWS_PER_WRITE, cut_rows, make_rows, write_arrow
from sae_utils.generation.sampling import Sample
from sae_utils.locks import Lock
from sae_utils.paths import UNFINISHED_SUFFIX
from sae_utils.records import check_same_settings

logger = logging.getLogger(__name__)

OTHER_SETTINGS_REMEDY = "give --overwrite to throw it away, or another --output_dir"

_SHARD_FEATURES = Features({**FEATURES, "nll": List(Value("int32"))})
"""Shards also keep each token's negative log-likelihood (`sampling.Sample`), for the statistics of the whole."""

_SHARD_NAME = re.compile(r"samples_(\d{9})_(\d{9})_(\d+)(?:_([0-9a-f]{16}))?\.arrow")
_ROWS_PER_FILE = 100_000

BYTES_PER_TOKEN = 12
"""Id (4), likelihood (4) and text (about 4) of a token in a shard; a finished data set has no likelihoods."""


@dataclass(frozen=True)
class Goal:
    """How much a data set is to hold: a number of samples, or an exact number of tokens."""

    n_samples: int | None
    """Samples, if that is what counts."""

    n_tokens: int | None = None
    """Tokens over all samples, BOS and EOS included, the last sample cut; replaces `n_samples`."""

    def __post_init__(self) -> None:
        if self.n_tokens is None and (self.n_samples is None or self.n_samples < 1):
            raise InputError(f"--n must be at least 1 sample, got {self.n_samples}")
        if self.n_tokens is not None and self.n_tokens < 1:
            raise InputError(f"--num_tokens must be at least 1, got {self.n_tokens}")

    def is_reached(self, n_samples: int, n_tokens: int) -> bool:
        """Whether this many finished samples and tokens are enough."""
        return n_tokens >= self.n_tokens if self.n_tokens is not None else n_samples >= self.n_samples

    def is_held_by(self, record: Mapping[str, Any]) -> bool:
        """Whether a finished data set, by its record, holds what is asked for."""
        n_uncut = record["n_samples"] - (record["cut_sample"] is not None)
        return n_uncut >= self.n_samples if self.n_tokens is None else record["n_tokens"] >= self.n_tokens

    def __str__(self) -> str:
        return f"{self.n_samples:,} samples" if self.n_tokens is None else f"{self.n_tokens:,} tokens"


@dataclass(frozen=True)
class Shard:
    """A file of finished samples with consecutive ids."""

    path: Path
    """The Arrow file."""

    first: int
    """Id of its first sample."""

    stop: int
    """Id after its last sample."""

    n_tokens: int
    """Tokens in it."""

    checksum: str | None
    """Of its bytes; None if an earlier version wrote it."""

    @property
    def remedy(self) -> str:
        """What to do if it is damaged."""
        return f"{removal(self.path)}, and the same command samples those {self.stop - self.first:,} again"

    def check(self) -> None:
        """Compare its bytes with what was written.

        Raises:
            DamagedFileError: If they differ.
        """
        check_file(self.path, self.checksum, self.remedy)

    def open(self) -> Dataset:
        """Its samples.

        Raises:
            DamagedFileError: If they cannot be read.
        """
        with reading(self.path, self.remedy):
            return Dataset.from_file(str(self.path))


class GrowingDataset:
    """Exclusive access to one data set under construction. Use as a context manager; one process holds it at a time."""

    def __init__(self, final: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Open, or start, the data set that will stand at `final`.

        Args:
            final: Folder of the finished data set.
            settings: What every sample depends on; recorded, and compared with what is there.
            overwrite: Throw away what stands there, finished or not.
        """
        self.final = final
        self.work = final.with_name(final.name + UNFINISHED_SUFFIX)
        self.settings = settings
        self.overwrite = overwrite
        self._told: set[str] = set()
        refusal = f"another run is writing {final}; wait for it, or give another --output_dir"
        self.lock = Lock(final.parent, final.name, refusal=refusal)

    def __enter__(self) -> "GrowingDataset":
        """Take the lock, mend an interrupted last step, and check settings and shards.

        Raises:
            InputError: If another run holds the data set, it was made with other settings, or a shard is damaged.
        """
        self.lock.acquire()
        try:
            self._open()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock.release()

    def _open(self) -> None:
        self._finish_interrupted_move()
        self.check_is_ours()
        remedy = OTHER_SETTINGS_REMEDY
        if self.overwrite:
            remove_folder(self.work)
        elif self.record is not None:
            check_same_settings(self.record["settings"], self.settings, where=self.final, remedy=remedy)
        if begun := self.begun:
            check_same_settings(begun["settings"], self.settings, where=self.work, remedy=remedy)
        for shard in self.parts():
            shard.check()

    def check_is_ours(self) -> None:
        """Refuse folders under our names that something else made; not even --overwrite throws those away.

        Raises:
            InputError: If there is one.
        """
        if self.final.exists() and not (self.final / RECORD_FILE).exists():
            raise InputError(f"{self.final} exists and has no {RECORD_FILE}; if you do not need it, move it away")
        if self.work.exists() and not self._settings_path.exists() and holds_something(self.work):
            raise InputError(f"{self.work} exists and has no settings.json; if you do not need it, move it away")

    def _finish_interrupted_move(self) -> None:
        """A run killed between the two renames of `finish` left the old data set aside: put it back."""
        if not self.final.exists() and (self.work / "previous").is_dir():
            os.rename(self.work / "previous", self.final)

    @property
    def begun(self) -> Record | None:
        """`settings.json` of the work in progress, or None if there is none."""
        if not self._settings_path.exists():
            return None
        begun = read_record(self._settings_path, f"{removal(self.work)}, and the same command begins anew")
        if "settings" not in begun:  # an earlier version's, which replaced nothing
            begun = Record(settings=dict(begun), replaces_finished=False)
        return begun

    @property
    def is_replacing(self) -> bool:
        """Whether the finished data set is kept only until another one is complete."""
        return self.overwrite or bool((begun := self.begun) and begun["replaces_finished"])

    @property
    def finished(self) -> Record | None:
        """`generation.json` of the finished data set, or None if there is none yet."""
        return read_generation_record(self.final) if (self.final / RECORD_FILE).exists() else None

    @property
    def record(self) -> Record | None:
        """`generation.json` of the finished data set that this one begins with, or None if it begins with none."""
        return None if self.is_replacing else self.finished

    def parts(self) -> list[Shard]:
        """The unbroken beginning of the sample stream that is on disk, as shards in the order of their ids.

        The finished data set, if there is one, is not part of this; the first shard starts where it ends.
        """
        by_first = {shard.first: shard for shard in self.shards()}
        unbroken = []
        position = self.n_kept[0]
        while position in by_first:
            unbroken.append(by_first[position])
            position = by_first[position].stop
        return unbroken

    def shards(self) -> Iterator[Shard]:
        """Every complete shard on disk."""
        told = {self.work / name for name in self._told}
        for path in sorted({*self.work.glob("samples_*.arrow"), *filter(Path.exists, told)}):
            if match := _SHARD_NAME.fullmatch(path.name):
                yield Shard(path, *map(int, match.groups()[:3]), match[4])

    @property
    def n_kept(self) -> tuple[int, int]:
        """Samples and tokens that the finished data set contributes, its cut last sample counted uncut."""
        record = self.record
        if record is None:
            return 0, 0
        cut = record["cut_sample"]
        return record["n_samples"], record["n_tokens"] + (len(cut["rest"]) if cut else 0)

    def progress(self) -> tuple[int, int]:
        """Samples and tokens of the unbroken beginning, on disk in any form."""
        n_samples, n_tokens = self.n_kept
        for shard in self.parts():
            n_samples, n_tokens = shard.stop, n_tokens + shard.n_tokens
        return n_samples, n_tokens

    @property
    def batches(self) -> list[list]:
        """Every way in which samples were decoded together so far: how many, and whether in batches of one shape."""
        path = self._batches_path
        if path.exists():
            return read_record(path, f"{removal(path)}, and give the same command", batches=list)["batches"]
        return (self.record or {}).get("batches", [])

    def add_batches(self, n_together: int, *, is_fixed: bool) -> None:
        """Take note of how samples are decoded from now on."""
        if [n_together, is_fixed] not in self.batches:
            write_record(self._batches_path, {"batches": [*self.batches, [n_together, is_fixed]]})

    def begin(self) -> None:
        """Make the working folder, with the settings of every sample that will be in it."""
        if not self._settings_path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            write_record(self._settings_path, {"settings": self.settings, "replaces_finished": self.overwrite})

    def add(self, first: int, samples: list[Sample], tokenizer: PreTrainedTokenizerBase, bos_id: int) -> str:
        """Write finished samples with ids `first`, `first + 1`, ... as one shard, complete or not at all; its name."""
        assert samples, "a shard without samples would never end"
        n_tokens = sum(len(sample.ids) for sample in samples)
        sample_ids = range(first, first + len(samples))
        rows = make_rows(sample_ids, [sample.ids for sample in samples], tokenizer, bos_id)
        rows = rows.add_column("nll", [sample.nll for sample in samples], feature=_SHARD_FEATURES["nll"])
        name = f"samples_{first:09d}_{first + len(samples):09d}_{n_tokens}"
        with written_whole(self.work / f"{name}.arrow", n_bytes=n_tokens * BYTES_PER_TOKEN) as shard:
            write_arrow(rows, shard.scratch, _SHARD_FEATURES)
            shard.path = self.work / f"{name}_{checksum_file(shard.scratch)}.arrow"
        return shard.path.name

    def take_in(self, name: str) -> None:
        """Take note of a shard that a process has written, maybe on another machine.

        There a network file system shows a folder as it was some seconds ago, but finds what is asked for by its name.

        Raises:
            InputError: If it is not there.
        """
        if not (self.work / name).exists():
            raise InputError(
                f"{self.work / name} was written by another process and is not here; give an --output_dir that is one "
                f"folder on all machines"
            )
        self._told.add(name)

    def finish(
        self, goal: Goal, tokenizer: PreTrainedTokenizerBase, bos_id: int
    ) -> tuple[Dataset, dict[str, Any] | None, int]:
        """Put kept samples and shards together, cut to the goal, in the folder that `publish` will move into place.

        Returns:
            The data set; what was cut off its last sample, `{"id", "rest", "rest_nll"}`, or None if nothing was; and
            the negative log-likelihood of all its tokens together, in units of `sampling.NLL_UNIT` nats.
        """
        shards = [shard.open() for shard in self.parts()]
        kept, kept_nll = self._kept_pieces(tokenizer, bos_id)
        rows = concatenate_datasets([*kept, *(shard.select_columns(list(FEATURES)) for shard in shards)])
        rows, cut_tokens = cut_rows(rows, goal.n_samples, goal.n_tokens, tokenizer, bos_id)
        nll, cut = self._sum_nll(shards, kept_nll, len(rows), cut_tokens)
        with written_whole(self.work / "whole.arrow", n_bytes=self._size_of(rows)) as whole:
            write_arrow(rows, whole.scratch, FEATURES)
        rows = Dataset.from_file(str(self.work / "whole.arrow"))
        n_files = -(-len(rows) // _ROWS_PER_FILE)
        # A fingerprint of its own: the default one hashes file paths and times, so equal data would differ on disk.
        named = Dataset(rows.data, info=rows.info, fingerprint=f"{len(rows):016x}")
        with written_folder(self.work / "dataset", n_bytes=self._size_of(rows)) as folder:
            named.save_to_disk(str(folder), num_shards=n_files)
        return Dataset.load_from_disk(str(self.work / "dataset")), cut, nll

    def remove_leftovers(self) -> None:
        """Remove what a run left that was killed when the data set was complete; work in progress stays."""
        begun, finished = self.begun, self.finished
        is_half_gone = being_removed(self.work).exists() and not self.work.exists()
        is_done = begun and finished and not begun["replaces_finished"] and not self.parts()
        if is_half_gone or (is_done and begun["settings"] == finished["settings"]):
            remove_folder(self.work)

    def publish(self, record: dict[str, Any]) -> None:
        """Complete the assembled data set with its record, move it to its final name and remove the shards."""
        folder = self.work / "dataset"
        checksums = checksum_files(folder, (path.name for path in folder.iterdir() if path.name != RECORD_FILE))
        write_record(folder / RECORD_FILE, record | {"checksums": checksums})
        remove_folder(self.work / "previous")
        if self.final.exists():
            os.rename(self.final, self.work / "previous")
        os.rename(self.work / "dataset", self.final)
        remove_folder(self.work)

    @property
    def _settings_path(self) -> Path:
        return self.work / "settings.json"

    @property
    def _batches_path(self) -> Path:
        return self.work / "batches.json"

    @staticmethod
    def _size_of(rows: Dataset) -> int:
        """About how many bytes rows take in a file."""
        return int(rows.data.column("num_tokens").to_numpy().sum()) * BYTES_PER_TOKEN

    def _kept_pieces(self, tokenizer: PreTrainedTokenizerBase, bos_id: int) -> tuple[list[Dataset], int]:
        """Rows of the finished data set, its cut last sample made whole again, and their summed likelihoods."""
        record = self.record
        if record is None:
            return [], 0
        kept = open_samples(self.final, record)
        cut = record["cut_sample"]
        if cut is None:
            return [kept], record["nll_sum_units"]
        whole = np.array(kept[-1]["input_ids"] + cut["rest"], dtype=np.int32)
        last = make_rows([cut["id"]], [whole], tokenizer, bos_id)
        return [kept.select(range(len(kept) - 1)), last], record["nll_sum_units"] + sum(cut["rest_nll"])

    def _sum_nll(
        self, shards: list[Dataset], kept_nll: int, n_samples: int, cut_tokens: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any] | None]:
        """Summed likelihoods of the tokens that are in, and the full record of what was cut off the last sample."""
        n_kept, total, rest_nll = self.n_kept[0], kept_nll, None
        for shard in shards:
            used = shard.select(range(min(len(shard), max(0, n_samples - int(shard[0]["id"])))))
            for batch in used.with_format("arrow").iter(ROWS_PER_WRITE):
                total += int(batch.column("nll").combine_chunks().flatten().to_numpy().sum(dtype=np.int64))
            if cut_tokens is not None and len(used) and used[-1]["id"] == cut_tokens["id"]:
                rest_nll = used[-1]["nll"][-len(cut_tokens["rest"]) :]
        if cut_tokens is None:
            return total, None
        if rest_nll is None:  # the sample that was already cut is cut again: nothing new was needed
            assert cut_tokens["id"] < n_kept
            rest_nll = self.record["cut_sample"]["rest_nll"][-len(cut_tokens["rest"]) :]
        return total - sum(rest_nll), {**cut_tokens, "rest_nll": rest_nll}
