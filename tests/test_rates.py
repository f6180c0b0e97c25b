"""Rates that plans go by: kept by what decides them, and never in the way."""

import threading
from pathlib import Path

import pytest
import torch
from conftest import pretend_gpus, run_killed

from sae_utils import rates
from sae_utils.devices import device_name
from sae_utils.files import read_record, write_record
from sae_utils.locks import Lock
from sae_utils.rates import RATES_FILE, Rate, Stopwatch, find_rate, keep_rate, this_machine, tidy_rates

OF = {"device": "x", "layers": (7, 15), "k": 32}


def test_a_rate_is_found_by_all_that_decides_it(tmp_path):
    """A rate of something else makes a plan of days wrong by days."""
    keep_rate(tmp_path, OF, Rate(1000, 2.0))
    keep_rate(tmp_path, OF | {"k": 64}, Rate(1000, 4.0, {"n_samples": 5}))
    assert find_rate(tmp_path, OF).tokens_per_sec == 500
    assert find_rate(tmp_path, OF | {"k": 64}) == Rate(1000, 4.0, {"n_samples": 5})
    for other in ({"device": "y"}, {"layers": (7,)}, {"k": 33}, {"more": 1}):
        assert find_rate(tmp_path, OF | other) is None


def test_the_last_rate_counts(tmp_path):
    keep_rate(tmp_path, OF, Rate(1000, 2.0))
    keep_rate(tmp_path, OF, Rate(500, 2.0))
    assert find_rate(tmp_path, OF).tokens_per_sec == 250
    assert len(read_record(tmp_path / RATES_FILE, "")["rates"]) == 1


def test_nothing_measured_leaves_no_file(tmp_path):
    keep_rate(tmp_path, OF, None)
    assert find_rate(tmp_path, OF) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: write_record(path, {"rates": [{"of": {}}]}),
        lambda path: write_record(path, {"rates": [{"of": OF, "n_tokens": 1, "elapsed_sec": 0}]}),
        lambda path: path.write_text(path.read_text().replace("1000", "1001")),
    ],
)
def test_a_damaged_file_is_named_ignored_and_made_again(tmp_path, caplog, spoil):
    keep_rate(tmp_path, OF, Rate(1000, 2.0))
    path = tmp_path / RATES_FILE
    spoil(path)
    assert find_rate(tmp_path, OF) is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{path} is damaged (" in line and "made again" in line
    keep_rate(tmp_path, OF, Rate(1000, 2.0))
    assert find_rate(tmp_path, OF).tokens_per_sec == 500


def test_what_is_in_the_way_costs_nothing(tmp_path, caplog):
    """Weeks of training do not end because of a hint."""
    (tmp_path / RATES_FILE).mkdir()
    (tmp_path / RATES_FILE / "mine").touch()
    keep_rate(tmp_path, OF, Rate(1000, 2.0))
    assert (tmp_path / RATES_FILE / "mine").exists() and find_rate(tmp_path, OF) is None
    with Lock(tmp_path / "held", "rates", refusal=""):
        keep_rate(tmp_path / "held", OF, Rate(1000, 2.0))
    assert not (tmp_path / "held" / RATES_FILE).exists()


@pytest.mark.parametrize("moment", [1, 2])
def test_what_a_killed_run_left_is_tidied_up(tmp_path, moment):
    """Scraps beside the data sets are taken for something."""
    assert run_killed(lambda argv: keep_rate(tmp_path, OF, Rate(1000, 2.0)), [], moment), "killed too late"
    assert list(tmp_path.iterdir())
    tidy_rates(tmp_path)
    assert not list(tmp_path.iterdir())
    keep_rate(tmp_path, OF, Rate(1000, 2.0))
    tidy_rates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RATES_FILE]


def test_many_at_once_lose_nothing(tmp_path, monkeypatch):
    """Cells of several runs end at the same time."""
    monkeypatch.setattr(rates, "Lock", lambda *args, **kwargs: Lock(*args, **kwargs, patience_sec=30.0))
    kinds = [OF | {"k": k} for k in range(8)]
    threads = [threading.Thread(target=keep_rate, args=(tmp_path, kind, Rate(1, 1.0))) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(find_rate(tmp_path, kind) for kind in kinds)


def test_a_watch_leaves_out_what_came_before_the_first_report(monkeypatch):
    """A first step compiles kernels, for minutes; several reports may come at once, after the last of their steps."""
    now = 100.0
    monkeypatch.setattr(rates.time, "monotonic", lambda: now)
    watch = Stopwatch()
    assert watch.rate() is None
    for _ in range(3):
        watch.note(30)
    assert watch.rate() is None
    now = 104.0
    watch.note(50)
    assert watch.rate() == Rate(20, 4.0)


def test_a_machine_is_its_device_and_threads(monkeypatch):
    cpu = torch.device("cpu")
    assert this_machine(cpu) == {"device": device_name(cpu), "n_threads": torch.get_num_threads()}
    assert device_name(cpu)
    assert this_machine(torch.device("cuda")) is None, "PyTorch sees none here"
    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert this_machine(torch.device("cuda"))["device"] == "NVIDIA H100"


def test_a_processor_without_a_name_has_that_of_its_kind(monkeypatch, tmp_path):
    """As on a Mac."""
    monkeypatch.setattr("sae_utils.devices.PROCESSOR_FILE", tmp_path / "nothing")
    assert device_name(torch.device("cpu"))
    Path("cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n")
    monkeypatch.setattr("sae_utils.devices.PROCESSOR_FILE", Path("cpuinfo"))
    assert device_name(torch.device("cpu")) == "Some CPU @ 2 GHz"
