"""``cattn info`` prints what a bug report should say about the machine."""

from cattn import _config
from cattn._cli import print_json, print_table


def add_parser(commands):
    parser = commands.add_parser(
        "info",
        help="print versions, the kernel table, caches and threads",
        description="Print what a bug report should say: versions, the kernel table in use and those that this "
        "processor runs, caches, threads and where their number comes from, NumPy's BLAS, and where the licence and "
        "the documentation are.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(options):
    config = _config.collect()
    if options.json:
        print_json(config)
    else:
        print_table(_config.describe(config).items())
