"""Who may not write to the hub hears so at once, in one line."""

import pytest
from huggingface_hub import constants

from sae_utils.errors import InputError
from sae_utils.sharing.login import check_login


def test_a_member_and_the_account_itself_may_write(hub):
    check_login("somebody")
    check_login("me")
    assert hub.calls.count("GET /api/whoami-v2") == 2


def test_a_login_that_is_not_taken_or_may_not_write_is_refused(hub, monkeypatch):
    with pytest.raises(InputError, match="--push_to_hub others: me may not write there, but to me, somebody"):
        check_login("others")
    hub.account = {**hub.account, "auth": {"accessToken": {"role": "read"}}}
    with pytest.raises(InputError, match="the login of me may read alone; make a token that may write"):
        check_login("somebody")
    monkeypatch.setenv("HF_TOKEN", "hf_of_yesterday")
    with pytest.raises(InputError, match="the hub does not take the login; run `hf auth login`, or set HF_TOKEN"):
        check_login("somebody")


@pytest.mark.parametrize("trouble", ["nobody there", "busy"])
def test_a_hub_in_trouble_may_be_well_when_it_is_needed(hub, monkeypatch, caplog, trouble):
    """It is asked again at the end; a training does not wait for it."""
    if trouble == "busy":
        hub.before = lambda call: 503
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    check_login("somebody")
    (record,) = caplog.records
    assert record.getMessage().endswith("tried again when all else is done")
    assert "\n" not in record.getMessage()
