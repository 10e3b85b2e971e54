"""The class of what `plan` returns."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Describe how the kernel goes about one call of `attention`.

    A plan depends on the arrays' shapes, types, strides, alignment and byte order, on the kernel table, and on the L2
    cache, but not on the data. The number of threads decides only how many tiles share a task and whether splits of the
    keys are tasks of their own, which changes no bit of a result.

    Attributes
    ----------
    strategy : {"many rows", "few rows"}
        "many rows" has rows in the lanes of vectors. "few rows" has the head size there; it is used where at most 8
        rows share a key head, as in decoding. A row is one query of one head.
    isa : {"portable", "vec128", "neon", "avx2", "avx512", "avx512bf16", "amx"}
        The kernel table in use.
    lanes : int
        The number of rows of a tile. They are computed side by side, and share each load of a key.
    key_block : int
        The number of keys that a tile visits at a time.
    chunk : int
        The number of keys after which a new softmax begins, which is merged with that of the chunks before.
    split : int
        The number of keys, a multiple of ``chunk``, after which that softmax in turn is merged with that of the splits
        before. Different threads can compute the splits of a row.
    tiles_per_task : int
        The number of tiles that take turns with each block of keys.
    tasks : int
        The number of pieces of work, which threads take one after the other. More threads than that have nothing to
        do.
    workspace_bytes : int
        The number of bytes of memory that each thread needs.
    partial_bytes : int
        The number of bytes of memory, in all, for the results of splits that are tasks of their own. One thread needs
        none.

    See Also
    --------
    plan : Make a Plan.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.ones((1, 12, 128, 64), np.float32)
    >>> plan = cattn.plan(x, x, x)
    >>> plan.strategy, plan.partial_bytes
    ('many rows', 0)
    """

    strategy: str
    isa: str
    lanes: int
    key_block: int
    chunk: int
    split: int
    tiles_per_task: int
    tasks: int
    workspace_bytes: int
    partial_bytes: int
