"""Sample text from language models, from their beginning-of-sequence token alone.

    python generate_datasets.py --num_tokens 100000000 --seed 4  # pythia-1.4b
    python generate_datasets.py --models FOLDER --n 20 --max_length 128  # a try
    python generate_datasets.py --models ID1 ID2 --dry_run  # what would be done

Writes one Hugging Face data set per model, to train SAEs on what it says. The
same command again goes on where a run was stopped, or extends a data set when
more is asked for. docs/options.md has every flag at length.
"""

import argparse
import sys
from pathlib import Path

from sae_utils.command_line import add_running_flags, add_sharing_flags, check_running_flags, make_parser, run_script


def build_parser() -> argparse.ArgumentParser:
    """The documented command line."""
    parser = make_parser(__doc__)
    what = parser.add_argument_group("what to sample from")
    what.add_argument(
        "--models",
        nargs="+",
        default=["EleutherAI/pythia-1.4b"],
        metavar="MODEL",
        help="hub ids or local folders, one data set each; a folder is found before the hub",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--seed", type=int, default=42, help="seed of the sampling streams")
    sampling.add_argument("--temperature", type=float, default=1.0, help="divides the logits, > 0")
    sampling.add_argument(
        "--top_p", type=float, default=0.9, help="nucleus mass kept at each step, in (0, 1]; 1.0 is the model's own"
    )
    amount = parser.add_argument_group("how much")
    amount.add_argument("--n", type=int, default=400_000, help="samples per data set")
    amount.add_argument(
        "--num_tokens",
        type=int,
        default=None,
        help="exact tokens per data set, BOS and EOS counted, the last sample cut; replaces --n",
    )
    amount.add_argument("--max_length", type=int, default=1024, help="longest sample in tokens, BOS included")
    output = parser.add_argument_group("batches and output")
    output.add_argument("--batch_size", type=int, default=None, help="samples decoded together; not given, what fits")
    output.add_argument(
        "--fixed_batches",
        action="store_true",
        help="keep every batch in one shape and sample i in row i mod --batch_size: on a GPU, the same ids whatever "
        "--n is, for passes on samples that have ended",
    )
    output.add_argument("--output_dir", type=Path, default=Path("datasets"), help="folder of the data sets")
    add_sharing_flags(parser, what="every finished data set")
    add_running_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, check, then sample one data set per model."""
    run_script(build_parser(), generate, argv, when_stopped=how_to_go_on)


def how_to_go_on(args: argparse.Namespace) -> str:
    """What to say when the script was asked to end."""
    same = "the same command without --overwrite" if args.overwrite else "the same command"
    return f"stopped; finished samples are kept, {same} goes on from there"


def generate(args: argparse.Namespace) -> None:
    """Sample every data set asked for.

    Raises:
        InputError: If a setting or an input has to be changed.
    """
    from sae_utils.devices import choose_device, choose_dtype
    from sae_utils.disk import check_writable
    from sae_utils.distributed import find_launch, join_workers, leave_workers
    from sae_utils.generation.job import GenerationJob, check_jobs, run_job
    from sae_utils.generation.sampling import SamplingSettings
    from sae_utils.generation.shards import Goal
    from sae_utils.generation.timed_batch import time_sampling
    from sae_utils.generation.unsampled import describe_all_unsampled, describe_job, describe_unsampled
    from sae_utils.progress import script_output
    from sae_utils.rates import tidy_rates
    from sae_utils.shared_folders import check_shared
    from sae_utils.sharing.upload import find_push

    check_running_flags(args)
    with script_output(quiet=args.quiet or not find_launch().is_main):
        # 1. Check every setting and every model's configuration before anything large is loaded.
        check_writable(args.output_dir, "output_dir")
        settings = SamplingSettings(args.seed, args.temperature, args.top_p, args.max_length)
        goal = Goal(None if args.num_tokens is not None else args.n, args.num_tokens)
        device = choose_device(args.device, is_plan=args.dry_run)
        dtype = choose_dtype(args.dtype, device)
        workers = join_workers()
        push = find_push(args.push_to_hub, is_public=args.public, is_plan=args.dry_run) if workers.is_main else None
        chosen = args.batch_size, device, dtype, args.overwrite, args.fixed_batches
        jobs = check_jobs(
            [GenerationJob(model, args.output_dir, settings, goal, *chosen) for model in args.models],
            workers,
            is_plan=args.dry_run and not args.time_steps,
        )

        if args.time_steps:
            for job in jobs:
                time_sampling(job, workers)

        # 2. Say what will be done.  3. For each model: load, sample up to the goal, write, record.
        for job in jobs:
            if workers.is_main and (args.dry_run or not args.quiet):
                print(describe_job(job), flush=True)
            if workers.is_main and args.dry_run:
                print(describe_unsampled(job), flush=True)
            job.check_room()
        if workers.is_main and args.dry_run and len(jobs) > 1:
            print(describe_all_unsampled(jobs), flush=True)
        folders = [job.job.folder for job in jobs]
        if push is not None:
            planned = push.describe("dataset", folders)
            if args.dry_run:
                print(planned, flush=True)
        if not args.dry_run:
            check_shared(workers, output_dir=args.output_dir)
        for job in [] if args.dry_run else jobs:
            outcome = run_job(job, workers, quiet=args.quiet)
            if workers.is_main:
                print(outcome, flush=True)
                tidy_rates(args.output_dir)

        # 4. Send what is finished to the hub, if asked to.
        if push is not None and not args.dry_run:
            for outcome in push.send("dataset", folders, quiet=args.quiet):
                print(outcome, flush=True)
    leave_workers()


if __name__ == "__main__":
    sys.exit(main())
