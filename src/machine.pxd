# The machine that this process computes on: what is known of it, and the kernel tables that it runs.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from system.system cimport (
    cattn_best_isa, cattn_isa_name, cattn_l2_bytes, cattn_override, cattn_prefetches_rows)
from tiles.portable_table cimport fill_portable
from tiles.tiles cimport cattn_table


cdef struct Machine:
    cattn_table table
    Py_ssize_t l2_bytes        # of one core
    bint prefetches_rows       # by itself
    Py_ssize_t most_threads    # of a call


cdef inline list all_isas():
    """Return the names of all kernel tables, best first."""
    cdef int number = 0
    names = []
    while cattn_isa_name(number) != NULL:
        names.append((<bytes>cattn_isa_name(number)).decode())
        number += 1
    return names


cdef inline int fill_table(cattn_table *table, str name) except? -3:
    """Fill the kernel table of this name. Return what cattn_override does."""
    fill_portable(table)
    return cattn_override(table, name.encode("utf-8", "surrogateescape"))


cdef inline list all_runnable_isas():
    """Return the names of those that this build has and this processor runs."""
    cdef cattn_table unused
    return [name for name in all_isas() if fill_table(&unused, name) == 0]


cdef inline int open_machine(Machine *machine, str name, Py_ssize_t most_threads) except -1:
    """Find out what is known of the machine, and fill the kernel table of this name, or the best one if it is None."""
    machine.l2_bytes = cattn_l2_bytes()
    machine.prefetches_rows = cattn_prefetches_rows()
    machine.most_threads = most_threads
    status = fill_table(&machine.table, (<bytes>cattn_best_isa()).decode() if name is None else name)
    if status == -1:
        *others, last = reversed(all_isas())
        raise ImportError(f"CATTN_ISA: expected {', '.join(others)} or {last}, got {name!r}")
    if status == -2:
        raise ImportError(f"CATTN_ISA: this processor or build cannot run {name!r}")
    return 0


cdef inline size_t new_table(str name) except 0:
    """Return the address of the kernel table of this name, which is never freed."""
    cdef cattn_table *table = <cattn_table *>PyMem_RawMalloc(sizeof(cattn_table))
    if table == NULL:
        raise MemoryError
    if fill_table(table, name) != 0:
        PyMem_RawFree(table)
        raise ValueError(f"name: expected one of {all_runnable_isas()}, got {name!r}")
    return <size_t>table
