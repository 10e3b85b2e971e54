"""Vector instructions stand where they were asked for: in the tables that run on processors which have them."""

import collections
import functools
import platform
import re
import shutil
import subprocess
import sys

import pytest

from cattn import _kernel

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="reads the instructions of x86-64 Linux"
    ),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump here"),
]


def objdump(*options):
    done = subprocess.run(["objdump", *options, _kernel.__file__], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def find_homes():
    """The source of each function, by address. What other files call is listed behind all of them, under no file: its
    own name has to say where it comes from."""
    homes, file = {}, ""
    for line in objdump("--syms"):
        if symbol := re.match(r"([0-9a-f]+) .{6}(.) (\S+)\t[0-9a-f]+ *(.*)", line):
            address, kind, section, name = symbol.groups()
            if kind == "f":
                file = name
            elif kind == "F" and section != "*UND*":
                homes[int(address, 16)] = file or name
    return homes


@functools.cache
def instructions():
    """How often each table and "", which stands for all else, has an instruction, as a mnemonic and a kind of
    register; and where all else has it."""
    homes = find_homes()
    if not any("avx2" in home for home in homes.values()):
        pytest.skip("the names of files and functions were stripped from this module")
    counts, places = collections.defaultdict(collections.Counter), {}
    table = name = ""
    for line in objdump("--disassemble", "--no-show-raw-insn"):
        if header := re.match(r"([0-9a-f]+) <(.*)>:$", line):
            name = f"{header[2]} of {homes.get(int(header[1], 16), 'nowhere')}"
            found = re.search(r"avx2|avx512[a-z0-9]*|amx", name)
            table = found[0] if found else ""
        elif instruction := re.match(r" *[0-9a-f]+:\t(\w+) *(.*)", line):
            register = re.search(r"%[yz]mm", instruction[2])
            counts[table][instruction[1], register[0] if register else ""] += 1
            if not table:
                places[instruction[1]] = name
    return counts, places


@pytest.mark.parametrize("isa, register, wider", [("avx2", "%ymm", "%zmm"), ("avx512", "%zmm", None)])
@pytest.mark.parametrize("suffix", ["ps", "pd"])
def test_tables_multiply_and_add_at_once_in_their_widest_registers(isa, register, wider, suffix):
    counts, _ = instructions()
    fused = rounded_twice = 0
    for (mnemonic, used), count in counts[isa].items():
        assert used != wider, mnemonic
        if used == register and mnemonic.endswith(suffix):
            fused += count if mnemonic.startswith(("vfmadd", "vfnmadd")) else 0
            rounded_twice += count if mnemonic.startswith(("vmul", "vadd")) else 0
    assert fused > rounded_twice


def test_all_else_runs_on_every_processor():
    """Names of instructions of AVX and later begin with v; a compiler that is told to use them uses them everywhere."""
    counts, places = instructions()
    assert counts[""]
    later = {mnemonic: places[mnemonic] for mnemonic, _ in counts[""] if mnemonic.startswith("v")}
    assert not later
