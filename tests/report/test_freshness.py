"""The report is drawn again exactly when something that it consists of, or is made of, has changed or is missing."""

from report_fixture import write_results

from sae_utils.report.feature_files import feature_files
from sae_utils.report.freshness import fresh_figures, record_report
from sae_utils.report.page import write_report


def test_a_report_whose_features_are_not_all_beside_it_is_drawn_again(tmp_path):
    """Else a file that was lost would stay lost, however often the command is given."""
    results = write_results(tmp_path, layers=[7], n_features=5)
    page = write_report(results, max_bytes=100_000)
    record_report(results, [page, *feature_files(results)])
    assert fresh_figures(results) == []
    lost, *others = feature_files(results)
    assert others
    content = lost.read_bytes()
    lost.unlink()
    assert fresh_figures(results) is None
    lost.write_bytes(content[:-1])
    assert fresh_figures(results) is None
    lost.write_bytes(content)
    assert fresh_figures(results) == []
