"""May we write to the hub? Found out before anything is loaded: a training of days must not end at a missing login."""

import logging

from huggingface_hub import HfApi, get_token, is_offline_mode

from sae_utils.errors import InputError
from sae_utils.sharing.asking import UnreachableError, asking_the_hub

logger = logging.getLogger(__name__)


def check_login(org: str) -> None:
    """Refuse what is wrong about the login; a hub that does not answer now may do so when the work is done.

    Args:
        org: Organisation or account to write to.

    Raises:
        InputError: If there is no login, it is not taken, or it may not write there.
    """
    if (reason := missing_login(org)) is not None:
        raise InputError(reason)
    try:
        check_rights(org)
    except UnreachableError as err:
        logger.warning("%s; tried again when all else is done", err)


def missing_login(org: str) -> str | None:
    """What to say if there can be no push, without asking anybody; None if there can."""
    with asking_the_hub(f"--push_to_hub {org}: the login could not be read"):
        if get_token() is None:
            return f"--push_to_hub {org} needs a login, and there is none; run `hf auth login`, or set HF_TOKEN"
    if is_offline_mode():
        return f"--push_to_hub {org} asks the hub, which HF_HUB_OFFLINE says is not to be asked; unset it"
    return None


def check_rights(org: str) -> None:
    """Ask the hub who is logged in.

    Raises:
        UnreachableError: If it does not answer.
        InputError: If the login is not taken, or may not write to `org`.
    """
    with asking_the_hub(f"--push_to_hub {org} was not possible"):
        me = HfApi().whoami()
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(f"--push_to_hub {org}: the login of {me['name']} may read alone; make a token that may write")
    places = [me["name"], *(each["name"] for each in me.get("orgs", []))]
    if org not in places:
        raise InputError(f"--push_to_hub {org}: {me['name']} may not write there, but to {', '.join(places)}")
