"""Where the models and data sets are that finished SAEs name: where the flags say, where they were, or beside the SAEs.

Records name folders as they were given, seen from the directory of that run. A study that was moved, or is measured
from another directory, is found again all the same; what is found is held against the fingerprints.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_utils.comparison.trained import TrainedSae
from sae_utils.errors import InputError, MissingInputError
from sae_utils.generated_data import RECORD_FILE, Form
from sae_utils.paths import DatasetKey, short_name
from sae_utils.sources.catalog import beginning_of, find_corpus
from sae_utils.sources.controls import control_name, shuffled
from sae_utils.sources.corpora import corpus_name
from sae_utils.sources.origins import Source, cut_source, read_generated
from sae_utils.sources.packs import Packs


@dataclass(frozen=True)
class Whereabouts:
    """Where to look, beside the places that the records name."""

    datasets_dir: Path
    """Folder of the generated data sets."""

    packs: Packs
    """Where packed sequences are kept."""

    models: tuple[str, ...] = ()
    """Hub ids or folders of models."""

    corpora: tuple[str, ...] = ()
    """Files, folders or hub ids of text corpora."""

    def find_target(self, sae: TrainedSae) -> str:
        """The model whose activations an SAE encodes; a hub id as it was recorded."""
        recorded, name = sae.run["target_reference"], sae.record["target"]
        named = [model for model in self.models if short_name(model) == name]
        for each in [*named, recorded, *_beside(sae, "target_from_here")]:
            if (Path(each).expanduser() / "config.json").is_file():
                return each
        return recorded

    def find_source(self, sae: TrainedSae) -> Source:
        """The data that an SAE was trained on, in the form that it had then.

        Raises:
            MissingInputError: If it is nowhere.
            InputError: If what is there is something else.
        """
        recorded, fingerprint = sae.run["dataset"], _base_fingerprint(sae)
        found = []
        for source in self._candidates(sae):
            if source.fingerprint == fingerprint:
                return _as_trained_on(source, sae)
            if source.is_generated and (form := _recorded_form(sae)) and (cut := cut_source(source, form)):
                return _as_trained_on(cut, sae)
            found.append(source)
        if found:
            raise InputError(
                f"{sae.folder} was trained on {recorded} with the fingerprint {fingerprint}, and what is found there "
                f"({found[-1].reference}) has {found[-1].fingerprint}; its held-out tokens are not known any more: "
                f"bring the data back, or train again with --overwrite"
            )
        raise MissingInputError(
            f"the data set {recorded} is gone, so {sae.folder} cannot be measured; looked also in "
            f"{self.datasets_dir} and beside it; give --datasets_dir or --text_datasets"
        )

    def _candidates(self, sae: TrainedSae) -> Iterator[Source]:
        """What may be the source of an SAE, the likeliest first."""
        recorded, name = sae.run["dataset"], Path(sae.run["dataset"]).name
        beside = _beside(sae, "dataset_from_here")
        generated = [Path(each) for each in [self.datasets_dir / name, recorded, *beside]]
        folders = [folder for folder in generated if (folder / RECORD_FILE).exists()]
        yield from map(read_generated, dict.fromkeys(folders))
        if folders or (DatasetKey.from_folder(name) and not Path(recorded).exists()):
            return
        is_control = sae.run.get("dataset_control") is not None
        names = {each: corpus_name(each) for each in self.corpora}
        called = {each: control_name(name) if is_control else name for each, name in names.items()}
        named = [each for each, name in called.items() if name == sae.source]
        there = [each for each in [recorded, *beside] if Path(each).exists()]
        for each in dict.fromkeys([*named, *(there or [recorded])]):
            if (form := _recorded_form(sae)) is None:
                yield find_corpus(each, self.packs)
            else:  # nothing is read: packed sequences are found by the fingerprint, and texts held against it
                about = sae.run["dataset_column"], sae.run["dataset_tokenizer"]
                yield beginning_of(each, form.n_samples, form.fingerprint, *about)


def find_sources_of(saes: Sequence[TrainedSae], where: Whereabouts) -> dict[tuple[str, str], Source]:
    """The sources that SAEs were trained on, by name and fingerprint: one that was extended has several forms.

    Raises:
        InputError: If one is not what it was, or two have one name.
    """
    sources: dict[tuple[str, str], Source] = {}
    references: dict[str, str] = {}
    for sae in saes:
        name, key = sae.source, (sae.source, sae.run["dataset_fingerprint"])
        if key in sources:
            continue
        sources[key] = source = where.find_source(sae)
        other = references.setdefault(name, source.reference)
        if other != source.reference:
            raise InputError(
                f"{other} and {source.reference} are both called {name}, so their results would be taken for each "
                f"other; keep SAEs of either in a --checkpoint_dir and a --results_dir of their own"
            )
    return sources


def _beside(sae: TrainedSae, name: str) -> list[str]:
    """What a record names, seen from its own folder; nothing if it is not on this disk, or not recorded so."""
    relative = sae.run.get(name)
    return [str(sae.folder.parent / relative)] if relative else []


def _recorded_form(sae: TrainedSae) -> Form | None:
    """How much of its data set there was when an SAE was trained; None if that was not recorded."""
    form = sae.run.get("dataset_form")
    return Form(**form, fingerprint=_base_fingerprint(sae)) if form else None


def _base_fingerprint(sae: TrainedSae) -> str:
    """Fingerprint of the data that an SAE was trained on, or of what these are a control of."""
    control = sae.run.get("dataset_control")
    return control["of"] if control else sae.run["dataset_fingerprint"]


def _as_trained_on(source: Source, sae: TrainedSae) -> Source:
    """A source, or the control that is made of it."""
    return shuffled(source) if sae.run.get("dataset_control") else source
