"""Several processes measure what one does, each its share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from grid_files import EVAL_ONLY, everything
from test_cli import ROOT

NOTED = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from sae_utils.comparison import measuring
import train_sae

def noted(name):
    real = getattr(measuring, name)
    def call(model, hooked, *args, **options):
        with open("calls_" + os.environ["RANK"], "a") as file:
            file.write(f"{{name}} {{len(hooked)}}\\n")
        return real(model, hooked, *args, **options)
    return call

for name in ("measure_reconstruction", "measure_splices", "measure_random_firing"):
    setattr(measuring, name, noted(name))
train_sae.main(sys.argv[1:])
"""
"""The script, which takes down how many SAEs each process measures."""


def test_processes_share_the_saes_of_a_target(grid):
    """One would measure while the others wait; the same to the last bit."""
    before = everything()
    shutil.rmtree("results")
    Path("noted.py").write_text(NOTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    subprocess.run([*command, "noted.py", *EVAL_ONLY], check=True, capture_output=True, env=os.environ)
    assert everything() == before
    n_measured = [[int(line.split()[1]) for line in Path(f"calls_{rank}").read_text().splitlines()] for rank in (0, 1)]
    assert n_measured == [[6] * 5] * 2, "of 12: reconstruction and splices on two sources, random tokens"


def test_more_processes_than_saes(grid):
    """The last ones have nothing to measure, and are waited for all the same."""
    names = sorted(path.name for path in Path("checkpoints").glob("*_seed_*"))
    for name in names[1:]:
        shutil.rmtree(Path("checkpoints") / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "--"]
    flags = [*EVAL_ONLY, "--results_dir"]
    subprocess.run([sys.executable, str(ROOT / "train_sae.py"), *flags, "one"], check=True, capture_output=True)
    subprocess.run([*command, str(ROOT / "train_sae.py"), *flags, "three"], check=True, capture_output=True)
    one, three = (json.loads(Path(folder, "metrics.json").read_text()) for folder in ("one", "three"))
    assert len(one["saes"]) == 2 and one == three
