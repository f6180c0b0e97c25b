"""`report.html`: a page that opens anywhere, with the answer first, then the evidence, then the features themselves.

Nothing is fetched from elsewhere: styles, script and drawings are inside, and features as far as the page stays small
enough; the others lie in files beside it. The layout is in `templates`.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from sae_utils.files import write_text
from sae_utils.report import differences, figures
from sae_utils.report.agreement_figures import seed_agreement
from sae_utils.report.answer import (
    agreement_sentence,
    brackets_sentence,
    caution_sentence,
    diverged_sentence,
    kinds_with_intervals,
    tokenized_again_sentence,
    unequal_sentence,
)
from sae_utils.report.budgets import at_largest_budget, smaller_budgets
from sae_utils.report.differences import difference_rows, differences_sentence
from sae_utils.report.drawing import CSS_NAMES, Chart, inline_svg
from sae_utils.report.feature_data import SaeFeatures, browser_data
from sae_utils.report.feature_files import file_name, remove_unused, write_features
from sae_utils.report.findings import Findings, Spread, read_findings
from sae_utils.report.matrices import MATRICES, SHARED_MATRICES, agreement_matrices, source_matrices
from sae_utils.report.origin import NAMES, VERDICTS, origin_rows, origin_sentence
from sae_utils.report.panels import PANEL_WIDTH
from sae_utils.report.parts import Parts
from sae_utils.report.preparation import exclusion_sentence, packing_sentences, packings, random_tokens_sentence
from sae_utils.report.probe_tables import MEASURES, TITLES, probe_sentence, probed_datasets
from sae_utils.report.rounding import rounded

TEMPLATES = Path(__file__).parent / "templates"

THRESHOLDS = ("0.5", "0.6", "0.7", "0.8", "0.9")

MAX_PAGE_BYTES = 10_000_000
"""What can be mailed, and is shown at once."""


def write_report(results_dir: Path, *, max_bytes: int = MAX_PAGE_BYTES) -> Path:
    """Write `<results_dir>/report.html`, and features beside it with which it would be larger than that; its path.

    Parts whose numbers are missing are left out, or say what they need.

    Raises:
        MissingInputError: If there is no `metrics.json`.
        InputError: If it has no SAE, or another schema than `SCHEMA`.
    """
    path = results_dir / "report.html"
    page, beside = render(read_findings(results_dir), max_bytes=max_bytes)
    write_features(results_dir, beside)
    write_text(path, page)
    remove_unused(results_dir, beside)
    return path


def render(findings: Findings, *, max_bytes: int = MAX_PAGE_BYTES) -> tuple[str, list[SaeFeatures]]:
    """The page, of at most so many bytes, and the SAEs whose features belong beside it.

    Of figures and tables the largest are left out until the others fit, and the page says so; then come features, in
    the order of their SAEs. What always stands there, such as the answer's table, is about a kilobyte for each source
    and layer.
    """
    saes, parts = browser_data(at_largest_budget(findings)), Parts()
    template, content = page_template(), page_content(findings)

    def render_with(n_within: int) -> str:
        return template.render(**content, part=parts, browser=saes, n_within=n_within)

    page = render_with(0)
    if (excess := n_bytes(page) - max_bytes) > 0:
        parts.leave_out(excess)
        page = render_with(0)
    elements = (n_bytes(features_element(sae, index)) for index, sae in enumerate(saes))
    n_within = sum(end <= max_bytes for end in accumulate(elements, initial=n_bytes(page))) - 1
    if n_within > 0:
        page = render_with(n_within)
    return page, saes[max(n_within, 0) :]


def page_content(findings: Findings) -> dict[str, Any]:
    """What the template shows, but for the features."""
    charts, smaller = figures.make_charts(findings), smaller_budgets(findings)
    findings = at_largest_budget(findings)
    return {
        "css": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "js": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "findings": findings,
        "facts": grid_facts(findings, smaller),
        "sentences": [origin_sentence(findings), agreement_sentence(findings), differences_sentence(findings)],
        "origin_rows": {measure: origin_rows(findings, measure) for measure in NAMES},
        "origin_names": NAMES,
        "verdicts": VERDICTS,
        "difference_rows": difference_rows(findings),
        "compared": differences.MEASURES,
        "difference_marks": differences.MARKS,
        "brackets": brackets_sentence(findings),
        "has_first_positions": any(
            each.has_other("fvu", "fvu_without_first_position") for _, _, members in findings.groups for each in members
        ),
        "with_intervals": kinds_with_intervals(findings),
        "caution": caution_sentence(findings),
        "diverged": diverged_sentence(findings),
        "unequal": unequal_sentence(findings),
        "tokenized_again": tokenized_again_sentence(findings),
        "packings": packings(findings),
        "packing_sentences": packing_sentences(findings),
        "excluded": exclusion_sentence(findings),
        "random_tokens": random_tokens_sentence(findings),
        "agreement_matrices": agreement_matrices(findings),
        "matrices": source_matrices(findings, MATRICES),
        "shared_matrices": source_matrices(findings, SHARED_MATRICES),
        "charts": inline_charts(charts, findings),
        "chart_names": {chart.name for chart in charts},
        "css_colours": {colour: f"var(--{name})" for colour, name in CSS_NAMES.items()},
        "thresholds": THRESHOLDS,
        "most_fakes": figures.most_fakes,
        "probed": probed_datasets(findings),
        "probe_titles": TITLES,
        "probe_measures": MEASURES,
        "probe_sentence": probe_sentence,
        "n_pairs": max((spread.n for each in findings.comparisons if (spread := each.of_pairs("sfr"))), default=0),
    }


def page_template() -> Template:
    """The layout."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"exact": exact, "typeset": typeset}
    environment.globals |= {"file_name": file_name, "features_element": features_element}
    return environment.get_template("report.html.j2")


def features_element(sae: SaeFeatures, index: int) -> str:
    """The features of an SAE within the page, for its script."""
    return f'<script type="application/json" id="features-{index}">{sae.text}</script>\n'


def exact(value: float | Spread | None) -> float | None:
    """A number itself, or the mean of several."""
    return value.mean if isinstance(value, Spread) else value


def typeset(value: float, decimals: int, *, is_share: bool = False) -> str:
    """A number as the page shows it: rounded, with a real minus sign."""
    return rounded(value, decimals, is_share=is_share).replace("-", "\N{MINUS SIGN}")


def grid_facts(findings: Findings, smaller: Sequence[int] = ()) -> list[tuple[str, str]]:
    """What was compared, as pairs of a name and a value; `smaller` are budgets that are only drawn over tokens."""
    saes = list(findings.saes)
    seeds = sorted({sae["seed"] for sae in saes})
    n_eval = [each.get("n_tokens") for sae in saes for each in sae.get("evaluations") or []]
    facts = [
        ("Targets", ", ".join(findings.targets)),
        ("Sources", ", ".join(findings.sources)),
        ("Layers", ", ".join(map(str, findings.layers))),
        ("Seeds", ", ".join(map(str, seeds))),
        ("SAEs", f"{len(saes):,}"),
        ("Latents", _range([sae.get("n_latents") for sae in saes])),
        ("Active latents, k", _range([sae.get("k") for sae in saes])),
        ("Training tokens", _range([sae.get("n_train_tokens") for sae in saes])),
        ("Training tokens kept", _range([sae.get("n_tokens_trained_on") for sae in saes if _has_less(sae)])),
        ("Smaller budgets, in the figure over tokens", ", ".join(f"{n_tokens:,}" for n_tokens in smaller)),
        ("Held-out tokens", _range(n_eval)),
    ]
    return [(name, value) for name, value in facts if value]


def inline_charts(charts: list[Chart], findings: Findings) -> dict[str, dict[str, Any]]:
    """Charts by name, their panels drawn for the page; the first one also narrow, for phones."""
    drawn = {
        chart.name: _drawn(chart, chart.name)
        for chart in charts
        if not chart.name.startswith("sources_")  # the page has these as tables
    }
    for name, make in (("seed_agreement", seed_agreement), ("fake_features", figures.fake_features)):
        if name in drawn:
            drawn[name]["narrow"] = _drawn(make(findings, width=PANEL_WIDTH), f"{name}_narrow")["panels"]
    return drawn


def _drawn(chart: Chart, name: str) -> dict[str, Any]:
    panels = [
        {"title": panel.title, "svg": inline_svg(panel, f"{name}-{index}")} for index, panel in enumerate(chart.panels)
    ]
    return {"panels": panels, "legend": chart.legend}


def n_bytes(text: str) -> int:
    """Bytes of a text in a file."""
    return len(text.encode())


def _has_less(sae: dict[str, Any]) -> bool:
    """Whether an SAE is known to have learned from fewer tokens than it was shown."""
    return sae.get("n_tokens_trained_on") not in (None, sae.get("n_train_tokens"))


def _range(values: list[int | None]) -> str:
    """One number, or the smallest and the largest, with separators; empty if none is known."""
    known = sorted({value for value in values if value is not None})
    if not known:
        return ""
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"
