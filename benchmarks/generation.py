"""Speed of sampling, side by side in one run: ours, transformers' `generate` and `generate_batch`, and the bare passes.

    python benchmarks/generation.py --model .cache/SmolLM2-135M-Instruct --record benchmarks/results/generation_cpu.json
    python benchmarks/generation.py --config pythia-1.4b --device cuda       # random weights of that shape

Every contender samples the same number of rows of the same length from BOS, in the same number format. "bare passes"
are the forward passes of our loop at the same shapes with a fixed token instead of sampling: what is left is the price
of sampling. "ours, fixed batches" keeps ended rows, which shows with `--early` alone. Ratios are what counts: machines
are noisy, and the rounds of all contenders alternate. The memory bound is what a step at least has to read, weights and
cached keys and values, at the bandwidth of a large copy; the bound of products is the time of a step's products with
the model's weights alone. "generate, static" has a static cache, for which transformers compiles the model on a GPU;
that is done before and not counted.
"""

import argparse
import contextlib
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from machine import add_record, copied_bytes_per_sec, device_name, multiplied_flop_per_sec
from products import products_sec
from random_model import SHAPES, random_model
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.generation.kv_cache import make_cache
from sae_utils.generation.packed_attention import attention_kernels, use_packed_attention_
from sae_utils.generation.sample_memory import kv_bytes_per_token
from sae_utils.generation.sampling import SamplingSettings, pace_of, prepare_for_sampling_, sample_tokens
from sae_utils.memory import release_memory
from sae_utils.models import LoadedModel, load_causal_lm
from sae_utils.records import versions


def main() -> None:
    """Run every contender and print tokens per second."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    plain, source = load_source(args), load_source(args)  # transformers gets a model as it comes
    prepare_for_sampling_(source.model)
    settings = SamplingSettings(seed=0, temperature=args.temperature, top_p=args.top_p, max_length=args.tokens)
    if not args.early:  # nobody stops early, so that all do the same work
        plain, source = replace(plain, eos_ids=()), replace(source, eos_ids=())
    contenders = {
        "ours": lambda: sum(len(sample.ids) for sample in sample_tokens(source, range(args.rows), settings)),
        "ours, fixed batches": lambda: sum(
            len(sample.ids) for sample in sample_tokens(source, range(args.rows), settings, is_fixed=True)
        ),
        "bare passes": lambda: run_bare(source, args.rows, args.tokens),
        "generate": lambda: run_generate(plain, args, settings),
        "generate, static": lambda: run_generate(plain, args, settings, cache_implementation="static"),
        "generate_batch": lambda: run_generate_batch(plain, args, settings),
    }
    speeds: dict[str, list[float]] = {name: [] for name in args.contenders}
    peaks: dict[str, int] = {}
    run_bare(source, args.rows, 8)  # warm up
    if "generate, static" in args.contenders:  # compiled for this length, which is not counted
        contenders["generate, static"]()
    for _ in range(args.rounds):
        for name in args.contenders:
            speeds[name].append(measure(name, contenders[name], source, peaks))
    report(args, plain, source, speeds, peaks)


def measure(name: str, run: Callable[[], int], source: LoadedModel, peaks: dict[str, int]) -> float:
    """Tokens per second of one run; the memory it takes beside the weights, at most, goes to `peaks`."""
    is_cuda = source.model.device.type == "cuda"
    release_memory(source.model.device)
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    else:
        before = psutil.Process().memory_info().rss
    with resident_peak() as resident:
        start = time.perf_counter()
        n_tokens = run()
        if is_cuda:
            torch.cuda.synchronize()
        speed = n_tokens / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if is_cuda else max(resident)
    peaks[name] = max(peaks.get(name, 0), peak - before)
    print(f"{name}: {speed:,.0f} tok/s, {peaks[name] / 1e9:.2f} GB", flush=True)
    return speed


@contextlib.contextmanager
def resident_peak() -> Iterator[list[int]]:
    """Resident memory of this process, looked at ten times a second."""
    process, seen, is_over = psutil.Process(), [], threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            seen.append(process.memory_info().rss)

    seen.append(process.memory_info().rss)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


@torch.inference_mode()
def run_bare(source: LoadedModel, n_rows: int, n_tokens: int) -> int:
    """The forward passes of our loop, without sampling."""
    is_whole = pace_of(source.model.device).is_cache_whole
    cache = make_cache(source.model.config, n_tokens if is_whole else None)
    ids = torch.full((n_rows, 1), source.bos_id, device=source.model.device)
    with attention_kernels(source.model.device):
        for _ in range(1, n_tokens):
            source.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return n_rows * n_tokens


@torch.inference_mode()
def run_generate(source: LoadedModel, args: argparse.Namespace, settings: SamplingSettings, **options) -> int:
    """`model.generate` with sampling settings that mean the same."""
    ids = torch.full((args.rows, 1), source.bos_id, device=source.model.device)
    with_attention(source, "sdpa")
    rows = source.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=generation_config(source, args, settings),
        **options,
    )
    use_packed_attention_(source.model)
    if not args.early:
        return rows.numel()
    is_end = torch.isin(rows[:, 1:], torch.tensor(source.eos_ids, device=rows.device))
    return int(((is_end.cumsum(1) - is_end.long()) == 0).sum()) + len(rows)


def run_generate_batch(source: LoadedModel, args: argparse.Namespace, settings: SamplingSettings) -> int:
    """`model.generate_batch`, transformers' continuous batching."""
    with_attention(source, "sdpa")
    outputs = source.model.generate_batch(
        [[source.bos_id]] * args.rows, generation_config=generation_config(source, args, settings), progress_bar=False
    )
    with_attention(source, "sdpa")
    use_packed_attention_(source.model)
    return sum(1 + len(output.generated_tokens) for output in outputs.values())


def generation_config(source: LoadedModel, args: argparse.Namespace, settings: SamplingSettings) -> GenerationConfig:
    """The same distribution and lengths as ours; transformers' default top_k of 50 is switched off."""
    return GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        max_new_tokens=args.tokens - 1,
        bos_token_id=source.bos_id,
        eos_token_id=list(source.eos_ids) if args.early else -1,  # -1: never
        pad_token_id=source.tokenizer.eos_token_id if source.tokenizer else 0,
    )


def with_attention(source: LoadedModel, name: str) -> None:
    """Let the model use transformers' own attention."""
    source.model.set_attn_implementation(name)


def load_source(args: argparse.Namespace) -> LoadedModel:
    """A model from disk, or random weights of a published shape."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if args.model:
        return load_causal_lm(args.model, device, dtype)
    model = random_model(args.config, device, dtype)
    return LoadedModel(args.config, model, None, 0, (0,))


def bytes_per_token(source: LoadedModel, args: argparse.Namespace) -> float:
    """Least bytes to be read for a token where no row ends early.

    That is all weights but the embedding at every step, and every cached key and value.
    """
    model, longest = source.model, args.tokens
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    weights = sum(each.numel() for each in model.parameters()) - (embedding.numel() if head is not embedding else 0)
    cached = kv_bytes_per_token(model.config, model.dtype) * args.rows * longest * (longest - 1) / 2
    return ((longest - 1) * weights * model.dtype.itemsize + cached) / (args.rows * longest)


def step_products_sec(source: LoadedModel, n_rows: int) -> float:
    """Seconds of the matrix products of one step's weights."""
    return products_sec(source.model, lambda: run_bare(source, n_rows, 2), n_runs=5)


def report(args: argparse.Namespace, plain: LoadedModel, source: LoadedModel, speeds: dict, peaks: dict) -> None:
    """Print medians and ratios, and write them to the record."""
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    bandwidth = copied_bytes_per_sec(source.model.device)
    bound = bandwidth / bytes_per_token(plain, args)
    products_bound = args.rows * args.tokens / ((args.tokens - 1) * step_products_sec(source, args.rows))
    rows = {
        name: {
            "tokens_per_sec": round(median, 1),
            "all_tokens_per_sec": [round(each, 1) for each in speeds[name]],
            "ours_is_times": round(medians["ours"] / median, 2) if "ours" in medians else None,
            "share_of_memory_bound": round(median / bound, 3),
            "share_of_products": round(median / products_bound, 3),
            "peak_memory_beside_weights_bytes": peaks[name],
        }
        for name, median in medians.items()
    }
    for name, row in rows.items():
        times = f"ours is {row['ours_is_times']} times"
        shares = (
            f"{row['share_of_memory_bound']:.0%} of the memory bound, {row['share_of_products']:.0%} of the products"
        )
        print(f"{name:20} {row['tokens_per_sec']:>10,.1f} tok/s   {times:20} {shares}")
    if args.record:
        record = {
            "command": "python " + shlex.join(sys.argv),
            "device": device_name(source.model.device),
            "threads": args.threads,
            "copied_bytes_per_sec": round(bandwidth),
            "memory_bound_tokens_per_sec": round(bound, 1),
            "multiplied_flop_per_sec": round(multiplied_flop_per_sec(source.model.device, source.model.dtype)),
            "products_tokens_per_sec": round(products_bound, 1),
            "results": rows,
            "versions": versions(),
        }
        add_record(args.record, record)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="folder of a model")
    which.add_argument("--config", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--rows", type=int, default=128, help="samples decoded together")
    parser.add_argument("--tokens", type=int, default=256, help="tokens per sample, BOS included")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=0.9)
    parser.add_argument("--early", action="store_true", help="let samples end where the model ends them")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every contender; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    names = ["ours", "bare passes", "generate", "generate_batch"]
    parser.add_argument(
        "--contenders", nargs="+", default=names, choices=[*names, "ours, fixed batches", "generate, static"]
    )
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
