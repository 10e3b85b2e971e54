"""Compare cattn with the eager attention of every model family of HuggingFace's transformers.

    python tools/sweep_transformers.py CHECKOUT --out sweep.jsonl

CHECKOUT is a source tree of huggingface/transformers, at the tag of the installed version or near it: the wheel has no
tests, and a family's own tests know its smallest configuration and its inputs. Each model class is made small, given
random weights, and called without gradients in float32 with ``attn_implementation="eager"`` and with ``"cattn"``, in up
to three cases: with the inputs of the tests (forward), with padding on the left and a short window (padding), and while
it generates four tokens (generate). The outcome of each is one of:

    equal                      outputs agree to 1e-5 of the largest
    equal but for blind rows   equal to eager once the rows that see no key give 0 there, as they do in cattn
    equal but for booleans     equal to eager once the booleans that a model made itself are a mask there, as they are
                               in sdpa and in cattn: eager adds them to the scores
    amplified                  every attention call agrees to rounding, given the same inputs, and eager itself differs
                               as much when its attention changes by that rounding (ties of routers, of top-k)
    equal to sdpa              transformers' own sdpa differs from its eager in the same way
    never calls attention      the model computes its attention itself, or has none
    refused by cattn           with the message
    refused by transformers    with the message
    not run                    transformers' own test configuration does not run here; with the reason
    error, different           to be explained: these, and families that die or take too long, make the exit status 1

Each family runs in a process of its own, with a limit of time and of memory. Its result is a line of JSON in the file
given by --out, and a family that has one there is not run again unless --families names it.

A family that came after the checkout has no test in it. Its models of text are then tried with the configuration that
the tests have for language models in general. A few names that tests import may have moved between the two versions;
they are taken from the checkout.
"""

import argparse
import collections
import contextlib
import copy
import functools
import importlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
import types
import unittest
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
import transformers
from torch.utils._pytree import tree_map_only

import cattn
import cattn.transformers

BAD = ("different", "error", "died", "timed out")
REFUSED = ("refused by cattn", "refused by transformers")
EQUAL = ("equal to sdpa", "amplified", "equal but for booleans", "equal but for blind rows", "equal")
OUTCOMES = (*BAD, *REFUSED, *EQUAL, "never calls attention", "not run")  # of several, a class has the first
TOLERANCE = 1e-5  # of a model's outputs, as a share of the largest number
WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk")  # of configurations, longer than the tests' inputs
ROUNDING = 1e-6  # of one call's, as a share of the largest value, or twice eager's


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a source tree of huggingface/transformers")
    parser.add_argument("--out", type=Path, default=Path("sweep.jsonl"), help="results, one family a line")
    parser.add_argument("--families", help="only these, comma-separated, and again if they ran before")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for a family")
    parser.add_argument("--memory", type=float, default=12, help="GiB of address space for a family")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds after which none is started")
    arguments = parser.parse_args()

    prepare(arguments.checkout)
    known = Path(transformers.__file__).parent / "models"
    families = sorted(path.parent.name for path in known.glob("*/__init__.py"))
    done = read(arguments.out)
    if arguments.families:
        wanted = arguments.families.split(",")
        if unknown := set(wanted) - set(families):
            parser.error(f"--families: expected families of transformers, got {', '.join(sorted(unknown))}")
    else:
        wanted = [family for family in families if family not in done]
    run_all(wanted, arguments)
    done = read(arguments.out)
    print_summary(done)
    if missing := [family for family in families if family not in done]:
        print(f"\nnot yet run: {len(missing)} families")
    sys.exit(any(row["outcome"] in BAD for record in done.values() for row in record["rows"]))


def read(path):
    """Return the last record of each family that ran with the installed version of transformers."""
    records = {}
    if path.exists():
        for record in map(json.loads, path.read_text().splitlines()):
            if record["transformers"] == transformers.__version__:
                records[record["family"]] = record
    return records


# Processes


def run_all(families, arguments):
    context = multiprocessing.get_context("fork")  # what is imported here need not be imported for each family
    start = time.monotonic()
    families = collections.deque(families)
    running = []
    while families or running:
        late = time.monotonic() - start > arguments.stop_after
        if late:
            families.clear()
        while families and len(running) < arguments.jobs:
            family = families.popleft()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=run_one, args=(family, sender, arguments), daemon=True)
            process.start()
            sender.close()
            running.append((family, process, receiver, time.monotonic()))
        time.sleep(0.02)
        for entry in list(running):
            family, process, receiver, began = entry
            seconds = time.monotonic() - began
            rows = None
            if receiver.poll():
                try:
                    rows = receiver.recv()
                except EOFError:
                    process.join()
                    rows = [row("", "", "died", f"exit status {process.exitcode}")]
            elif seconds > arguments.timeout:
                rows = [row("", "", "timed out", f"after {seconds:.0f} s")]
            if rows is not None:
                process.kill()
                process.join()
                running.remove(entry)
                record = {
                    "family": family,
                    "transformers": transformers.__version__,
                    "cattn": cattn.__version__,
                    "seconds": round(seconds, 1),
                    "rows": rows,
                }
                with arguments.out.open("a") as file:
                    print(json.dumps(record), file=file)
                outcomes = sorted({row["outcome"] for row in rows}, key=OUTCOMES.index)
                print(f"{family}: {', '.join(outcomes)}", flush=True)


def run_one(family, sender, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    size = int(arguments.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            rows = examine(family)
        except Exception as error:
            rows = [row("", "", "not run", say(error))]
    sender.send(rows)


def row(model, case, outcome, detail="", calls=None):
    return {"model": model, "case": case, "outcome": outcome, "detail": detail, "calls": calls}


def say(error):
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = (str(error).splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {message} ({Path(where.filename).parent.name}/{Path(where.filename).name})"


# The tests of transformers


def prepare(checkout):
    """Import what the tests share, without their parts that this script has no use for."""
    checkout = checkout.resolve()
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # no test may wait for the network
    sys.path[:0] = [str(checkout), str(checkout / "utils")]
    prepare.checkout = checkout
    for part in ("pipeline", "training", "fsdp", "tensor_parallel"):
        stub = types.ModuleType(f"tests.test_{part}_mixin")
        stub.__getattr__ = empty_class
        sys.modules[stub.__name__] = stub
    torch.set_num_threads(1)
    cattn.transformers.register()
    transformers.logging.set_verbosity_error()
    import_test("tests.test_modeling_common")
    import_test("tests.causal_lm_tester")


def empty_class(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def import_test(name):
    """Import a module of the tests; a name that the installed transformers lacks comes from the checkout's source."""
    while True:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            found = re.match(r"cannot import name '(\w+)' from '(transformers[\w.]*)'", str(error))
            if not found:
                raise
            missing, module = found[1], importlib.import_module(found[2])
            if hasattr(module, missing):
                raise
            path = prepare.checkout / "src" / Path(*found[2].split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            spec = importlib.util.spec_from_file_location(f"{found[2]}_of_the_checkout", path)
            source = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(source)
            setattr(module, missing, getattr(source, missing))


def tests(family):
    """The test classes of a family that have a tester with configuration and inputs, set up."""
    folder = prepare.checkout / "tests" / "models" / family
    classes, errors = {}, []
    for path in sorted(folder.glob("test_modeling_*.py")):
        try:
            module = import_test(f"tests.models.{family}.{path.stem}")
        except Exception as error:
            errors.append(say(error))
            continue
        for name, item in vars(module).items():
            ours = isinstance(item, type) and item.__module__ == module.__name__
            if ours and issubclass(item, unittest.TestCase) and hasattr(item, "all_model_classes"):
                classes[name] = item
    if not folder.is_dir():
        classes = dict(stand_ins(family))
        if not classes:
            errors.append("no test in this checkout")
    for name, item in classes.items():
        try:
            test = item()
            test.setUp()
            has_models = test.all_model_classes and hasattr(test, "model_tester")
        except Exception as error:
            errors.append(f"{name}: {say(error)}")
            continue
        if has_models:
            yield test
    if errors:
        yield "; ".join(errors)


def stand_ins(family):
    """Tests of the text models of a family that the checkout does not know, with a configuration made for any."""
    common = import_test("tests.causal_lm_tester")
    folder = Path(transformers.__file__).parent / "models" / family
    for path in sorted(folder.glob("modeling_*.py")):
        modeling = importlib.import_module(f"transformers.models.{family}.{path.stem}")
        for name in getattr(modeling, "__all__", ()):
            model = getattr(modeling, name)
            takes_text = "input_ids" in inspect.signature(model.forward).parameters
            config = getattr(model, "config_class", None)
            if takes_text and config and "num_hidden_layers" in inspect.signature(config).parameters:
                given = {"base_model_class": model, "causal_lm_class": model, "config_class": config}
                tester = type(f"{name}Tester", (common.CausalLMModelTester,), given)
                tester = functools.partial(tester, num_hidden_layers=8)  # hybrids have attention in some
                yield name, type(f"{name}Test", (common.CausalLMModelTest,), {"model_tester_class": tester})


# One family


def examine(family):
    rows, seen = [], set()
    for test in tests(family):
        if isinstance(test, str):
            rows.append(row("", "", "not run", test))
            continue
        for model_class in test.all_model_classes:
            for case, prepare_case in CASES.items():
                if (type(test).__name__, model_class, case) in seen:
                    continue
                seen.add((type(test).__name__, model_class, case))
                name = f"{model_class.__name__}"
                try:
                    seed()
                    prepared = prepare_case(test, model_class)
                except Exception as error:
                    if case == "forward":
                        rows.append(row(name, case, "not run", say(error)))
                    continue
                if prepared is not None:
                    found = compare(model_class, *prepared)
                    if case == "forward" or found[0] != "not run":
                        rows.append(row(name, case, *found))
    return rows or [row("", "", "not run", "no model in these tests")]


def config_and_inputs(test, model_class):
    config, inputs = test.model_tester.prepare_config_and_inputs_for_common()
    if hasattr(test, "_prepare_for_class"):  # tests of backbones alone have none
        inputs = test._prepare_for_class(inputs, model_class)
    return config, inputs


def forward(test, model_class):
    config, inputs = config_and_inputs(test, model_class)
    return config, lambda model: model(**copy.deepcopy(inputs))


def padding(test, model_class):
    config, inputs = config_and_inputs(test, model_class)
    text = config.get_text_config()
    for name in WINDOWS:
        if length := getattr(text, name, None):
            setattr(text, name, min(length, 3))
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] > 2:
        mask = torch.ones_like(mask)
        mask[-1, :2] = 0
    elif isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.shape[1] > 2 and mask is None:
        if "attention_mask" not in inspect.signature(model_class.forward).parameters:
            return None
        mask = torch.ones(ids.shape, dtype=torch.long)
        mask[-1, :2] = 0
    else:
        return None
    inputs["attention_mask"] = mask
    return config, lambda model: model(**copy.deepcopy(inputs))


def generate(test, model_class):
    if model_class not in getattr(test, "all_generative_model_classes", ()):
        return None
    config, inputs = test.prepare_config_and_inputs_for_generate()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}

    def call(model):
        result = model.generate(**copy.deepcopy(inputs), **options)
        return {"logits": result.logits, "sequences": result.sequences}

    return config, call


CASES = {"forward": forward, "padding": padding, "generate": generate}


def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def make(model_class, config, implementation, like=None):
    """A model with these weights; without `like`, with random ones so large that attention matters."""
    seed()
    model = model_class._from_config(copy.deepcopy(config), attn_implementation=implementation).float().eval()
    if like is not None:
        model.load_state_dict(like.state_dict(), strict=False)
        return model
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=max(1, parameter[0].numel()) ** -0.5)
    return filled(model)


def filled(model):
    """Fill what transformers leaves as it was in memory, such as sinks."""
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            size = parameter.abs().max()
            if size != 0 and not 1e-3 < size < 1e3:
                torch.nn.init.normal_(parameter)
    return model


def compare(model_class, config, call):
    """(outcome, detail, number of attention calls) of one class in one case."""
    try:
        eager = make(model_class, config, "eager")
        expected, theirs = run(eager, call)
        if not finite(expected):
            eager = filled(model_class._from_config(copy.deepcopy(config), attn_implementation="eager"))
            eager = eager.float().eval()
            expected, theirs = run(eager, call)
        again, _ = run(eager, call)
    except Exception as error:
        return "not run", f"eager: {say(error)}"
    if gap(again, expected) != 0:
        return "not run", "eager gives another result each time"
    try:
        ours_model = make(model_class, config, "cattn", like=eager)
        found, ours = run(ours_model, call)
    except Exception as error:
        return refusal(error), say(error)
    difference = gap(found, expected)
    calls = len(ours)
    # A part of a model may ignore the name and stay eager.
    share = "" if calls == len(theirs) or not theirs else f"{calls} of {len(theirs)} calls"
    if difference <= TOLERANCE:
        return ("equal" if calls else "never calls attention"), share, calls
    detail = f"outputs differ by {difference:.1e}"
    if not calls:
        return "different", f"{detail}, though attention is never called", 0
    try:
        outcome, more = explain(eager, call, expected, found, theirs, ours)
    except Exception as error:
        outcome, more = None, f"calls cannot be compared: {say(error)}"
    detail += f"; {more}"
    if outcome is None:
        try:
            sdpa, _ = run(make(model_class, config, "sdpa", like=eager), call)
            if gap(found, sdpa) <= TOLERANCE:
                outcome = "equal to sdpa"
        except Exception:
            detail += "; sdpa does not run"
    return outcome or "different", detail, calls


def explain(eager, call, expected, found, theirs, ours):
    """(outcome or None, evidence) of outputs that differ, from the attention calls."""
    if len(theirs) != len(ours):
        return None, f"{len(theirs)} calls of eager attention, {len(ours)} of cattn's"
    error, allowed, blind, booleans = each_call(theirs, ours)
    detail = f"calls agree to {error:.1e}"
    if error > allowed:
        return None, detail
    difference = gap(found, expected)
    if blind or booleans:
        what = [f"{blind} rows see no key"] * (blind > 0) + [f"{booleans} calls add booleans"] * (booleans > 0)
        expected, _ = run(eager, call, change=as_meant)
        difference = gap(found, expected)
        detail += f"; {' and '.join(what)}, without which outputs differ by {difference:.1e}"
        if difference <= TOLERANCE:
            return f"equal but for {'booleans' if booleans else 'blind rows'}", detail
    moved = 0
    for n in range(4):
        generator = torch.Generator().manual_seed(n)
        change = functools.partial(perturb, size=max(error, ROUNDING / 10), generator=generator)
        moved = max(moved, gap(run(eager, call, change=change)[0], expected))
    detail += f"; eager moves by {moved:.1e} when its attention does by rounding"
    return ("amplified" if moved >= difference / 10 else None), detail


def refusal(error):
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    ours = Path(cattn.__file__).parent
    if isinstance(error, (TypeError, ValueError, NotImplementedError)) and ours in frames[-1].parents:
        return "refused by cattn"
    if "cattn" in str(error) or "attn_implementation" in str(error):
        return "refused by transformers"
    return "error"


# What is compared


def outputs(result, path=""):
    """Yield (path, tensor) of whatever a model returns; weights and caches left out."""
    if isinstance(result, torch.Tensor):
        yield path, result
    elif isinstance(result, dict):
        for name, item in result.items():
            if "attentions" not in str(name):
                yield from outputs(item, f"{path}.{name}")
    elif isinstance(result, (list, tuple)):
        for n, item in enumerate(result):
            yield from outputs(item, f"{path}.{n}")


def finite(result):
    return all(tensor.isfinite().all() for _, tensor in outputs(result) if tensor.is_floating_point())


def gap(found, expected):
    """The largest difference of two results, as a share of the largest number in the output where it occurs."""
    found, expected = dict(outputs(found)), dict(outputs(expected))
    if found.keys() != expected.keys():
        return float("inf")
    return max((tensor_gap(found[path], expected[path]) for path in expected), default=0.0)


def tensor_gap(found, expected):
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float(not torch.equal(found, expected))
    found, expected = found.double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    if same.all():
        return 0.0
    return largest(found - expected, ~same) / max(largest(expected, expected.isfinite()), 1e-30)


def largest(tensor, where):
    """The largest absolute value of those elements, infinite where one is NaN."""
    return torch.where(where, tensor, 0).abs().nan_to_num(nan=torch.inf).max().item()


class Call:
    """One call of an attention function."""

    def __init__(self, function, args, kwargs):
        self.function = function
        bound = inspect.signature(function).bind(*args, **kwargs)
        self.given = dict(bound.arguments)
        self.given.update(self.given.pop("kwargs", self.given.pop("others", {})))

    def __call__(self, **changes):
        return self.function(**(self.given | changes))[0]

    def as_meant(self):
        """Return the mask, with booleans read as one, and the rows that see no key, which broadcast over the output."""
        mask = self.given.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
            return mask, torch.zeros(1, 1, 1, 1, dtype=torch.bool)
        if mask.dtype == torch.bool:
            lowest = torch.finfo(self.given["query"].dtype).min
            mask = torch.zeros(mask.shape, dtype=self.given["query"].dtype).masked_fill(~mask, lowest)
        visible = mask > torch.finfo(mask.dtype).min / 2
        return mask, ~visible.any(-1, keepdim=True).transpose(1, 2)


def run(model, call, change=None):
    """(result, its attention calls). `change` is done to what eager attention gives."""
    calls = []

    def recorded(function):
        @functools.wraps(function)
        def attention(*args, **kwargs):
            if attention.busy:  # some call another's
                return function(*args, **kwargs)
            attention.busy = True
            try:
                out, *rest = function(*args, **kwargs)
            finally:
                attention.busy = False
            calls.append(Call(function, args, kwargs))
            if change is not None:
                out = change(calls[-1], out)
            return out, *rest

        attention.busy = False
        return attention

    with contextlib.ExitStack() as stack:
        mapping = transformers.AttentionInterface._global_mapping
        stack.callback(mapping.__setitem__, "cattn", mapping["cattn"])
        mapping["cattn"] = recorded(mapping["cattn"])
        for name, module in list(sys.modules.items()):
            function = name.startswith("transformers.models.") and vars(module).get("eager_attention_forward")
            if function:
                stack.callback(setattr, module, "eager_attention_forward", function)
                module.eager_attention_forward = recorded(function)
        seed()
        stack.enter_context(torch.no_grad())
        return call(model), calls


def as_meant(call, out):
    mask, blind = call.as_meant()
    if mask is not call.given.get("attention_mask"):
        out = call(attention_mask=mask)
    return out.masked_fill(blind, 0)


def perturb(call, out, *, size, generator):
    sign = torch.randint(0, 2, out.shape, generator=generator) * 2 - 1
    return as_meant(call, out) + size * call.given["value"].abs().max() * sign


@torch.no_grad()
def each_call(theirs, ours):
    """Compare both with eager in float64, each call given the inputs of eager's run. Return the largest error of
    cattn's and what is allowed for it, how many rows see no key, which are left out, and how many calls have booleans
    for a mask."""
    worst, allowed, rows_without, booleans = 0.0, ROUNDING, 0, 0
    for their, our in zip(theirs, ours, strict=True):
        inputs = {"query", "key", "value", "position_bias"} & their.given.keys()
        inputs = {name: tensor for name in inputs if (tensor := their.given[name]) is not None}
        for name, tensor in inputs.items():
            if tensor.shape != our.given[name].shape:
                raise ValueError(f"{name}: {tuple(tensor.shape)} in eager, {tuple(our.given[name].shape)} in cattn")
        mask, blind = their.as_meant()
        booleans += mask is not their.given.get("attention_mask")
        given = {name: value for name, value in their.given.items() if name != "module"} | {"attention_mask": mask}
        given = tree_map_only(torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, given)
        expected = their(**given)
        blind = blind.expand(*expected.shape[:3], 1)
        rows_without += int(blind.sum())
        error, eager_error = (
            largest(out - expected, ~blind) / max(largest(inputs["value"], torch.tensor(True)), 1e-30)
            for out in (our(**inputs), their(attention_mask=mask))
        )
        worst, allowed = max(worst, error), max(allowed, min(2 * eager_error, 100 * ROUNDING))
    return worst, allowed, rows_without, booleans


# The table


def print_summary(records):
    names = collections.defaultdict(lambda: collections.defaultdict(list))
    details = collections.defaultdict(lambda: collections.defaultdict(set))
    for family, record in sorted(records.items()):
        worst = {}
        for entry in record["rows"]:
            model = entry["model"] or "*"
            place = OUTCOMES.index(entry["outcome"])
            if place < worst.get(model, (len(OUTCOMES),))[0]:
                worst[model] = place, entry
        for model, (place, entry) in worst.items():
            outcome = OUTCOMES[place]
            names[outcome][family].append(model)
            if entry["detail"]:
                details[outcome][entry["detail"]].add(f"{family}.{model} ({entry['case']})")
        for outcome in names:
            if names[outcome].get(family) and len(names[outcome][family]) == len(worst):
                names[outcome][family] = []  # all of the family
    print(f"\ntransformers {transformers.__version__}, cattn {cattn.__version__}: {len(records)} families")
    for outcome in OUTCOMES:
        if outcome in names:
            listed = [
                family if not models else f"{family} ({', '.join(models)})" for family, models in names[outcome].items()
            ]
            print(f"\n{outcome}, {len(listed)} families: {', '.join(listed)}")
            if outcome not in ("equal", "never calls attention"):
                for detail, models in sorted(details[outcome].items()):
                    print(f"    {detail}: {', '.join(sorted(models))}")


if __name__ == "__main__":
    main()
