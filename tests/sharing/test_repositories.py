from pathlib import Path

import pytest

from sae_utils.errors import InputError
from sae_utils.sharing.repositories import name_repositories


@pytest.mark.parametrize(("org", "name"), [("some/body", "tiny"), ("somebody", "my model"), ("somebody", "m" * 97)])
def test_names_that_the_hub_does_not_take_are_refused(org, name):
    """Its own library would say so in several lines, at the end."""
    with pytest.raises(
        InputError, match=rf"--push_to_hub {org}: the hub takes no repository of the name '{org}/{name}'"
    ):
        name_repositories(org, "model", [Path(name)])


def test_a_folder_of_another_kind_of_run_holds_no_files_of_ours():
    """Names alone decide, so that nothing unknown leaves this machine."""
    (repository,) = name_repositories("somebody", "dataset", [Path("tiny_42_1.0_0.9")])
    ours = ["generation.json", "data-00000-of-00001.arrow", "README.md"]
    others = ["run.json", "layers.7/cfg.json", ".gitattributes", "samples_0_1.arrow", "cache/generation.json"]
    assert [name for name in ours + others if repository.is_ours(name)] == ours
    assert not repository.is_finished and repository.files() == {}
