"""README's example runs, its claims about half types are those of the records, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="not in a checkout")


def test_example():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["context"].shape == (1, 12, 128, 64)


@pytest.fixture(scope="module")
def claims():
    """README's words about speed, in one line."""
    (claims,) = re.findall(r"\*\*How fast\.\*\*.*?\n\n", README.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(claims.split())


def cases_in(dtype):
    """The measured cases by machine."""
    machines = {}
    for file in README.with_name("benchmarks").glob("results/*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        if found := [case for case in run["cases"] if case["dtype"] == dtype]:
            machines.setdefault(run["machine"], []).extend(found)
    if not machines:
        pytest.skip("not in a checkout")
    return machines


def rate(case, engine):
    return 1 / case["engines"][engine]["seconds"]


def test_claims_about_bfloat16_are_those_of_the_records(claims):
    told = {}
    for machine, cases in cases_in("bfloat16").items():
        over_float32 = [rate(case, "cattn") / rate(case, "cattn float32") for case in cases]
        speedups = [case["speedup"] for case in cases]
        told[machine] = tuple(f"{end(ratios):.1f}" for ratios in (over_float32, speedups) for end in (min, max))
    claimed = re.findall(
        r"In bfloat16 on ([\w ]+?) it is ([\d.]+) to ([\d.]+) times as fast as in float32, "
        r"and ([\d.]+) to ([\d.]+) times as fast as the fastest other engine\.",
        claims,
    )
    assert {machine: tuple(figures) for machine, *figures in claimed} == told
    assert ("On Intel's Xeons with AMX, bfloat16 has not been measured" in claims) != any(
        "AMX" in name for name in told
    )


def test_claims_about_float16_are_those_of_the_records(claims):
    (claimed,) = re.findall(r"In float16, OpenVINO is up to (.+?): it computes", claims)
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
