"""Results for people: tables on the terminal, figures, and one page that opens anywhere.

In: a results folder, and the training curves beside the SAEs. Out: text, PNG and SVG files, `report.html`. Nothing is
computed here that is not in the results already: no model, no data set and no weights are opened. Its files:

    rounding      how every number is shown
    tables        tables on the terminal, numbers for W&B
    dashboard     tables of a comparison for W&B
    findings      results, read again for the report
    budgets       of several budgets, the largest
    answer        the sentences of the report
    differences   the target's own text beside others, and what is beyond the spread
    origin        agreement between sources, in a sentence and in rows
    matrices      tables of train source x eval source
    probe_tables  what probes found
    preparation   what SAEs were given: rows, and what was left out
    drawing       looks of the figures
    plots         what is drawn in a figure
    panels        what figures have in common
    agreement_figures  figures of pairs of SAEs
    settings_figures   figures over training tokens and active latents
    figures       all figures, as PNG and SVG
    feature_data  data of the feature browser
    feature_files  those of them that lie beside the page
    parts         what the page leaves out where it would be too large
    page          report.html, from templates/
    freshness     is the report still that of the results?
"""
