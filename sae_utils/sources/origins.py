"""What SAEs are trained on: a data set that a model wrote, or a corpus, and how much of it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sae_utils.errors import InputError
from sae_utils.generated_data import Form, OtherSamplesError, cut_to_form, open_samples, read_generation_record
from sae_utils.models import fingerprint_tokenizer
from sae_utils.paths import DatasetKey


@dataclass(frozen=True)
class Source:
    """A data set to train on."""

    name: str
    """What files and tables call it: the short name of the model that wrote it, or the corpus' name."""

    reference: str
    """Folder of a generated data set; file, folder or hub id of a corpus."""

    n_samples: int
    """Texts in it."""

    n_tokens: int | None
    """Tokens in it, as sampled; None for a corpus, which has none of its own."""

    fingerprint: str
    """Hash of its token ids, or of a corpus' texts."""

    tokenizer_fingerprint: str | None = None
    """Hash of the vocabulary its ids belong to, for a corpus of ids the first target's; None for a corpus of texts."""

    eos_ids: tuple[int, ...] = ()
    """Tokens that may end a sample; none for a corpus."""

    last_text: str | None = None
    """Text of the last sample, if a token budget cut it."""

    column: str | None = None
    """What is read of a corpus: its texts, or token ids; None for a generated data set."""

    is_beginning: bool = False
    """Whether it is the first texts of a corpus, kept as `excerpts.py` does, and not what a whole file holds."""

    base: "Source | None" = None
    """The source that it is a control of, see `controls.py`; None for one that is trained on as it is."""

    missing: str | None = None
    """Why it is not there, of one that a plan takes for one that is, see `assumed.py`; None for all others."""

    @property
    def is_generated(self) -> bool:
        """Whether it was sampled from a model."""
        return self.column is None

    def is_tokenized_again(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether its ids mean something else to a target, so that its texts are read with the target's tokenizer."""
        return self.is_generated and self.tokenizer_fingerprint != fingerprint_tokenizer(tokenizer)

    @property
    def form(self) -> Form:
        """How much of a generated data set, or of a corpus, it is."""
        return Form(self.n_samples, self.n_tokens, self.fingerprint, self.last_text)

    @property
    def label(self) -> str:
        """Name of its folder, file or hub id, with what tells it from others of the same name."""
        return Path(self.reference).name


def read_generated(folder: Path) -> Source:
    """A generated data set as a source.

    Raises:
        DamagedFileError: If its record is damaged.
    """
    record, key = read_generation_record(folder), DatasetKey.from_folder(folder.name)
    if key is None:
        raise InputError(f"{folder} is not called as data sets are (MODEL_SEED_TEMPERATURE_TOP-P); give its name back")
    return Source(
        name=key.model,
        reference=str(folder),
        n_samples=record["n_samples"],
        n_tokens=record["n_tokens"],
        fingerprint=record["fingerprint"],
        tokenizer_fingerprint=record["settings"]["tokenizer_fingerprint"],
        eos_ids=tuple(record["settings"]["eos_ids"]),
        last_text=(record["cut_sample"] or {}).get("text"),
    )


def cut_source(source: Source, form: Form) -> Source | None:
    """A generated data set as it was before it was extended; None if it does not begin so.

    Raises:
        DamagedFileError: If its samples cannot be read.
    """
    if form == source.form:
        return source
    shorter = replace(source, **asdict(form))
    try:
        open_source(shorter)
    except OtherSamplesError:
        return None
    return shorter


def open_source(source: Source) -> Dataset:
    """The samples of a generated data set, or of the beginning of it that a source is.

    Raises:
        DamagedFileError: If they are not the ones that were sampled.
    """
    folder = Path(source.reference)
    return cut_to_form(open_samples(folder, read_generation_record(folder)), source.form, folder)
