"""All families of faults, in the order of the table."""

import bad_inputs
import concurrency
import damage
import full_disks
import kills
from study import Study
from trials import Case

FAMILIES = {
    "kills": kills,
    "full_disks": full_disks,
    "damage": damage,
    "bad_inputs": bad_inputs,
    "concurrency": concurrency,
}


def find_cases(study: Study, only: str = "", rounds: int = 1) -> list[Case]:
    """The trials whose names begin with `only`."""
    families = [family for name, family in FAMILIES.items() if name.startswith(only.split("/")[0])]
    return [case for family in families for case in family.cases(study, rounds, only) if begins_with(case.name, only)]


def begins_with(name: str, start: str) -> bool:
    """Whether a trial is the one of this name, or one below it.

    >>> begins_with("kills/training/12", "kills/training"), begins_with("kills/training/12", "kills/training/1")
    (True, False)
    """
    return not start or name == start or name.startswith(start.rstrip("/") + "/")
