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
    register; and where each table has it. A function belongs to the file that defines it, whatever its own name."""
    homes = find_homes()
    if not any("avx2" in home for home in homes.values()):
        pytest.skip("the names of files and functions were stripped from this module")
    counts, places = collections.defaultdict(collections.Counter), {}
    table = name = ""
    for line in objdump("--disassemble", "--no-show-raw-insn"):
        if header := re.match(r"([0-9a-f]+) <(.*)>:$", line):
            home = homes.get(int(header[1], 16), "nowhere")
            name = f"{header[2]} of {home}"
            found = re.search(r"avx2|avx512[a-z0-9]*|amx", home)
            table = found[0] if found else ""
        elif instruction := re.match(r" *[0-9a-f]+:\t(\w+) *(.*)", line):
            register = re.search(r"%[yz]mm|%k[0-7]", instruction[2])
            counts[table][instruction[1], register[0][:4] if register else ""] += 1
            places.setdefault((table, instruction[1]), set()).add(name)
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


# What came to x86-64 after SSE2, but for AVX and its like, whose names begin with v or k.
LATER = re.compile(
    r"addsubp[sd]|h(add|sub)p[sd]|lddqu|movddup|movs[hl]dup|fisttp|monitor|mwait"  # SSE3
    r"|pshufb|palignr|pabs[bwd]|ph(add|sub)\w+|psign[bwd]|pmaddubsw|pmulhrsw"  # SSSE3
    r"|round[ps][sd]|p?blend\w+|dpp[sd]|extractps|insertps|pinsr[bdq]|pextr[bdq]|pmov[sz]x\w+|ptest|pm(ax|in)(s[bd]|u[wd])"
    r"|pmul(dq|ld)|pcmp(eqq|gtq|[ei]str\w)|packusdw|mpsadbw|phminposuw|movntdqa|crc32\w?|popcnt"  # SSE4
    r"|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|s(ar|hl|hr)x|[lt]zcnt|ad[co]x|movbe|aes\w+|pclmul\w+|sha\d\w+"
    r"|ldtilecfg|sttilecfg|tile\w+|tdp\w+|rd(rand|seed|pid|tscp)|cmpxchg16b"
)
# What a table's processors need not have. `runs_avx2` and its like in cpu.c say what they do have.
TILES = r"tile\w+|tdp\w+|ldtilecfg"
BFLOAT16 = r"vdpbf16ps|vcvtne2?ps2bf16\w*"
OTHER_512 = r"vpdp\w+|vpmadd52\w+|vpopcnt\w+|vperm([ti]2)?b|v(add|sub|mul|div|sqrt|max|min|mov|fn?m(add|sub)\d+)[ps]h"
LACKS = {
    "avx2": f"{TILES}|{BFLOAT16}|{OTHER_512}",
    "avx512": f"{TILES}|{BFLOAT16}|{OTHER_512}",
    "avx512bf16": f"{TILES}|{OTHER_512}",
    "amx": OTHER_512,
}


def test_all_else_runs_on_every_processor():
    """A compiler that is told to use later instructions uses them everywhere. XGETBV alone is asked for in cpu.c."""
    counts, places = instructions()
    assert counts[""]
    later = {
        mnemonic: places["", mnemonic]
        for mnemonic, register in counts[""]
        if mnemonic.startswith("v") or register == "%k" or LATER.fullmatch(mnemonic)
    }
    assert not later


@pytest.mark.parametrize("isa", LACKS)
def test_tables_need_what_is_asked_for(isa):
    counts, places = instructions()
    assert counts[isa]
    unknown = {mnemonic: places[isa, mnemonic] for mnemonic, _ in counts[isa] if re.fullmatch(LACKS[isa], mnemonic)}
    assert not unknown
    if isa == "avx2":
        assert not any(register in ("%zmm", "%k") for _, register in counts[isa])


def test_tiles_are_released_where_they_are_configured():
    counts, places = instructions()
    if not counts["amx"]["tdpbf16ps", ""]:
        pytest.skip("this build has no kernels for AMX")
    assert places["amx", "ldtilecfg"] == places["amx", "tilerelease"]
