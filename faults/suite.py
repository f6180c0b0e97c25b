"""The fault suite: both scripts from outside, killed, starved of disk, fed with damage and nonsense, run at once.

    python faults/suite.py                                     # everything, about 20 minutes on 2 processors
    python faults/suite.py --only kills/training               # one family, or a part of it
    python faults/suite.py --seed 7 --only kills/training/12   # one trial, as a failure's message names it

Ends with a table of faults and what came of them. Exit code 1 if anything failed; what failed is kept, with the
commands, in the folder that is named.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Play all trials and say what came of them; the exit code."""
    args = parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="faults_"))
    prepare_environment(folder)
    import processes

    processes.import_everything()
    import families
    import trials
    from study import Study

    study = Study(folder / "states")
    (folder / "states").mkdir(parents=True, exist_ok=True)
    cases = families.find_cases(study, args.only, args.rounds)
    print(f"{len(cases)} trials, {args.workers or trials.default_workers()} at a time, in {folder}", flush=True)
    results = trials.play_all(
        cases, study, folder / "trials", args.seed, n_workers=args.workers or trials.default_workers()
    )
    for text in (
        trials.describe_failures(results, folder / "trials", args.seed),
        trials.describe_skipped(results),
        trials.table(results),
    ):
        print(f"\n{text}" if text else "", end="\n" if text else "")
    return trials.exit_code(results)


def prepare_environment(folder: Path) -> None:
    """What must be set before PyTorch and the hub's libraries are imported, for us and all that is started.

    One thread each, since the models are small and processes are forked; no hub, no account, no GPU.
    """
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "NETRC": str(folder / "no_netrc"),
    }
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY"):
        os.environ.pop(name, None)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [flags]"
    )
    parser.add_argument("--rounds", type=int, default=1, help="times as many trials (default: 1)")
    parser.add_argument("--only", default="", metavar="NAME", help="only trials whose names begin with this")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--folder", type=Path, help="where to work, new or of an earlier run; not given, a new one")
    parser.add_argument("--workers", type=int, help="trials at a time; not given, as many as there are processors")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
