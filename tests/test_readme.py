"""README's examples run, its claims about speed are those of the records, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="not in a checkout")


def test_examples():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert len(blocks[0].splitlines()) == 5
    assert names["context"].shape == (1, 12, 128, 64)


@pytest.fixture(scope="module")
def claims():
    """README's words about speed, in one line."""
    (claims,) = re.findall(r"\n## Speed\n.*?\n## ", README.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(claims.split())


def runs():
    found = [json.loads(file.read_text(encoding="utf-8")) for file in README.parent.glob("benchmarks/results/*.json")]
    if not found:
        pytest.skip("not in a checkout")
    return found


def cases_of(dtype, threads=1):
    return [case for run in runs() if run["threads"] == threads for case in run["cases"] if case["dtype"] == dtype]


def cases_in(dtype):
    """The measured cases by machine."""
    machines = {}
    for run in runs():
        if found := [case for case in run["cases"] if case["dtype"] == dtype]:
            machines.setdefault(run["machine"], []).extend(found)
    return machines


def rate(case, engine):
    result = case["engines"][engine]
    return result["gflops"] or 1 / result["seconds"]


def range_of(ratios):
    return f"{min(ratios):.1f} to {max(ratios):.1f} times"


def kind_of(case):
    queries, keys = map(int, case["shape"].split(",")[2:4])
    if queries <= 16:
        return "calls of 3 to 16 tokens" if keys <= 16 else "up to 16 queries over a cache of keys"
    return "causal attention" if case["causal"] else "dense attention"


def test_claims_about_numpy_are_those_of_the_records(claims):
    ratios = {}
    for case in cases_of("float32"):
        ratios.setdefault(kind_of(case), []).append(rate(case, "cattn") / rate(case, "NumPy"))
    told = re.findall(r"([\d.]+ to [\d.]+ times)(?: as fast)? for ([\w ]+?)(?:,|\.| and)", claims)
    assert len(ratios) == 4
    assert {(range_of(found), kind) for kind, found in ratios.items()} <= set(told)


def test_claims_about_other_engines_are_those_of_the_records(claims):
    alone, two = cases_of("float32"), cases_of("float32", threads=2)
    assert all(case["speedup"] >= 0.9 for case in alone)
    assert f"at most 10% behind it in all {len(alone)} recorded cases with one thread" in claims
    near = sum(case["speedup"] >= 0.9 for case in two)
    assert f"in {near} of {len(two)} with two threads" in claims
    causal = [case["speedup"] for case in alone + two if case["causal"]]
    assert f"{range_of(causal)} as fast as the fastest of them for causal attention" in claims


def test_claims_about_a_disturbed_run_are_those_of_the_records(claims):
    notes = " ".join(note for run in runs() for note in run["notes"])
    (told,) = re.findall(r"In two runs on the commit before: (.*?)\. ", notes + " ")
    lowest = sorted(re.findall(r"\d\.\d\d", told))[:2]
    assert "two cases fell to {} and {} of".format(*lowest) in claims


def test_claims_about_whole_models_are_those_of_their_page(claims):
    page = README.parent / "docs" / "guide" / "frameworks.md"
    if not page.exists():
        pytest.skip("not in a checkout")
    gains = [float(gain) for gain in re.findall(r"([\d.]+) × \(", page.read_text(encoding="utf-8"))]
    assert f"{min(gains):.2f} to {max(gains):.2f} times as fast with cattn" in claims


def test_the_time_of_the_shortest_call_is_that_of_the_records():
    shortest = [case["engines"]["cattn"]["seconds"] * 1e6 for case in cases_of("float32") if case["name"] == "seed"]
    words = " ".join(README.read_text(encoding="utf-8").split())
    told = f"{min(shortest):.1f} to {max(shortest):.1f} µs"
    assert f"The shortest recorded call, with three tokens, takes {told}" in words


def test_claims_about_bfloat16_are_those_of_the_records(claims):
    told = {}
    for machine, cases in cases_in("bfloat16").items():
        over_float32 = [rate(case, "cattn") / rate(case, "cattn float32") for case in cases]
        speedups = [case["speedup"] for case in cases]
        told[machine] = tuple(f"{end(ratios):.1f}" for ratios in (over_float32, speedups) for end in (min, max))
    claimed = re.findall(
        r"In bfloat16 on ([\w ]+?), (?:cattn|it) is ([\d.]+) to ([\d.]+) times as fast as in float32, "
        r"and ([\d.]+) to ([\d.]+) times as fast as the fastest other engine\.",
        claims,
    )
    assert {machine: tuple(figures) for machine, *figures in claimed} == told
    assert ("On Intel's Xeons with AMX, bfloat16 has not been measured" in claims) != any(
        "AMX" in name for name in told
    )


def test_claims_about_float16_are_those_of_the_records(claims):
    (claimed,) = re.findall(r"In float16, OpenVINO is up to (.+?), because it computes", claims)
    for machine, cases in cases_in("float16").items():
        behind = 1 / min(case["speedup"] for case in cases)
        assert behind < 1 or re.search(rf"\b{behind:.1f} times (as fast as cattn )?on {machine}\b", claimed)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_links_within_the_checkout(name):
    page = README.with_name(name)
    if not README.with_name("CONTRIBUTING.md").exists():
        pytest.skip("not in a checkout")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]
