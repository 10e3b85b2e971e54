"""What `plan` returns."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the kernel goes about one call of `attention`.

    It follows from the shapes, the types, where the arrays lie, the kernel table and the L2 cache: neither from the
    number of threads nor from the data.

    Attributes
    ----------
    strategy : {"many rows", "few rows"}
        What lies in the lanes of vectors: rows, or (where at most 8 rows share a key head, as in decoding) the head
        size. A row is one query of one head.
    isa : {"portable", "vec128", "avx2", "avx512", "avx512bf16", "amx"}
        The kernel table.
    lanes : int
        Rows of one tile: they are computed side by side, and share each load of a key.
    key_block : int
        Keys that a tile visits at a time.
    chunk : int
        Keys after which a new softmax begins, merged with those before. With few rows a chunk is a task of its own.
    tiles_per_task : int
        Tiles that take turns with each block of keys.
    tasks : int
        Pieces of work that threads take one after the other: no more than so many threads have anything to do.
    workspace_bytes : int
        Bytes of memory for each thread.
    partial_bytes : int
        Bytes of memory, in all, for the results of chunks that are tasks of their own. One thread holds only those of
        one key head at a time.

    See Also
    --------
    plan : Makes it.

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
    tiles_per_task: int
    tasks: int
    workspace_bytes: int
    partial_bytes: int
