"""Whole models of transformers, with cattn's attention and with PyTorch's: `python benchmarks/whole_models.py --help`.

Attention is a share of a model's time, and the least of it in a short sentence. Both attentions take turns in one model
and one process; weights and cached keys are random numbers, which cost what trained ones do. The time within attention
is measured besides, so that each line says how much of a gain was to be had.

`--caches` compares the caches of keys and values instead: `generate` of some tokens with cattn's attention, after a
text that is in the cache already. Each round begins with a cache of its own. Filling it is not timed.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers
from transformers import (
    AttentionInterface,
    BertConfig,
    BertModel,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

import cattn.transformers

IMPLEMENTATIONS = ("cattn", "sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="default: all")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--seconds", type=float, default=25, help="of each case and number of threads; default: 25")
    parser.add_argument("--caches", nargs="*", choices=DECODERS, help="compare caches; default: in all cases")
    parser.add_argument("--tokens", type=int, default=64, help="that are generated with each cache; default: 64")
    options = parser.parse_args()

    cattn.transformers.register()
    if options.caches is not None:
        print_caches(options)
        return
    clocks = {name: Clock(AttentionInterface()[name]) for name in IMPLEMENTATIONS}
    for name, clock in clocks.items():
        AttentionInterface.register(name, clock)
    print(f"cattn {cattn.__version__}, PyTorch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print("medians, attention's share in brackets\n")
    print(f"{'case':<24}{'threads':>8}{'rounds':>8}{'cattn':>20}{'sdpa':>20}{'sdpa / cattn':>14}")
    for name in options.cases:
        model, step = CASES[name]()
        for threads in options.threads:
            torch.set_num_threads(threads)
            rounds = measure(model, step, clocks, options.seconds)
            print(f"{name:<24}{threads:>8}{line(rounds)}", flush=True)


# Measuring


@dataclass
class Clock:
    """Call an attention function, and count the seconds spent in it."""

    attention: Callable
    seconds: float = 0.0

    def __call__(self, *arguments, **named):
        start = time.perf_counter()
        result = self.attention(*arguments, **named)
        self.seconds += time.perf_counter() - start
        return result


@dataclass
class Rounds:
    """Hold the seconds of each step of one implementation, and those of them that went to attention."""

    total: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)

    def shown(self) -> str:
        share = sum(self.attention) / sum(self.total)
        return f"{statistics.median(self.total) * 1e3:.1f} ms ({share:.0%})"


@torch.inference_mode()
def measure(model, step: Callable[[], object], clocks: dict[str, Clock], seconds: float) -> dict[str, Rounds]:
    """Return rounds of one step each, in changing order, after one step of each that does not count."""
    rounds = {name: Rounds() for name in clocks}
    names = list(clocks)
    for name in names:
        model.set_attn_implementation(name)
        step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds[names[0]].total) < 3:
        random.shuffle(names)
        for name in names:
            model.set_attn_implementation(name)
            clocks[name].seconds = 0.0
            start = time.perf_counter()
            step()
            rounds[name].total.append(time.perf_counter() - start)
            rounds[name].attention.append(clocks[name].seconds)
    return rounds


def line(rounds: dict[str, Rounds]) -> str:
    ours, theirs = (rounds[name] for name in IMPLEMENTATIONS)
    # Neighbours in time share what else the machine does.
    ratio = statistics.median(there / here for here, there in zip(ours.total, theirs.total, strict=True))
    return f"{len(ours.total):>8}{ours.shown():>20}{theirs.shown():>20}{ratio:>14.3f}"


# Caches

# Each takes the configuration and the length of the whole text.
CACHES = {
    "DynamicCache": lambda config, longest: DynamicCache(config=config),
    "StaticCache": lambda config, longest: StaticCache(config=config, max_cache_len=longest),
    "AppendCache": lambda config, longest: cattn.transformers.AppendCache(config),
}


def print_caches(options: argparse.Namespace) -> None:
    """Print a line with the milliseconds of a token for each case and number of threads."""
    print(f"cattn {cattn.__version__}, PyTorch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"milliseconds of a token, medians over rounds of {options.tokens} tokens\n")
    print(f"{'case':<16}{'threads':>8}{'rounds':>8}" + "".join(f"{name:>14}" for name in CACHES))
    for name in options.caches or DECODERS:
        make, context = DECODERS[name]
        model = make(context + options.tokens + 1)
        for threads in options.threads:
            torch.set_num_threads(threads)
            rounds = measure_caches(model, context, options.tokens, options.seconds)
            shown = "".join(f"{statistics.median(seconds) * 1e3:>14.1f}" for seconds in rounds.values())
            print(f"{name:<16}{threads:>8}{len(rounds['AppendCache']):>8}{shown}", flush=True)


@torch.inference_mode()
def measure_caches(model, context: int, tokens: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of a token in each round, for each cache, after two tokens that do not count."""
    config, names = model.config, list(CACHES)
    model.set_attn_implementation("cattn")
    input_ids = torch.randint(config.vocab_size, (1, context + 1))

    def generate(name: str, count: int) -> float:
        cache = CACHES[name](config, context + tokens + 1)
        for layer in range(config.num_hidden_layers):
            cache.update(*torch.randn(2, 1, config.num_key_value_heads, context, config.head_dim), layer)
        start = time.perf_counter()
        made = model.generate(
            input_ids, cache=cache, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )
        assert made.shape[1] == context + 1 + count
        return (time.perf_counter() - start) / count

    for name in names:
        generate(name, 2)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not rounds[names[0]]:
        for name in random.sample(names, len(names)):
            rounds[name].append(generate(name, tokens))
    return rounds


# Cases: a model, and the step that is timed


def minilm(padded: bool):
    """Return a model of the sizes of all-MiniLM-L6-v2, for 32 sentences of 128 tokens, or of 16 to 128."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel._from_config(config, attn_implementation="sdpa").eval()
    input_ids = torch.randint(1000, config.vocab_size, (32, 128))
    lengths = torch.linspace(16, 128, 32).long() if padded else torch.full((32,), 128)
    attention_mask = (torch.arange(128) < lengths[:, None]).long()
    return model, lambda: model(input_ids=input_ids, attention_mask=attention_mask)


def smollm2_sized(longest: int) -> LlamaForCausalLM:
    """Return a model of the sizes of SmolLM2-135M."""
    return decoder(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=longest,
    )


def llama_sized(longest: int) -> LlamaForCausalLM:
    """Return a model of the sizes of Llama-3.2-1B. Its weights take 5 GB."""
    return decoder(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=longest,
    )


def decoder(**sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, tie_word_embeddings=True)
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def smollm2(context: int):
    """Return a model of the sizes of SmolLM2-135M, for one new token after `context` others."""
    model = smollm2_sized(8193)
    config = model.config
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*torch.randn(2, 1, 3, context, 64), layer)
    input_ids = torch.randint(config.vocab_size, (1, 1))

    def step():
        model(input_ids, None, None, cache)  # the fourth has changed its name
        cache.crop(-1)

    return model, step


CASES = {
    "minilm-32x128": lambda: minilm(padded=False),
    "minilm-32x128-padded": lambda: minilm(padded=True),
    "smollm2-decode-1k": lambda: smollm2(1024),
    "smollm2-decode-8k": lambda: smollm2(8192),
}

# The model that takes so many tokens, and the tokens that are in its cache.
DECODERS = {
    "smollm2-1k": (smollm2_sized, 1024),
    "smollm2-8k": (smollm2_sized, 8192),
    "llama-1b-1k": (llama_sized, 1024),
    "llama-1b-8k": (llama_sized, 8192),
}

if __name__ == "__main__":
    main()
