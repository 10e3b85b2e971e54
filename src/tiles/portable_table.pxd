# The portable kernels as a table: complete, so that every other table replaces entries of it.

from problem cimport CATTN_FLOAT64, CATTN_FLOATS
from tiles.portable_double cimport fill_kernels as fill_doubles
from tiles.portable_float cimport fill_kernels as fill_floats, round_to_float
from tiles.portable_storage cimport multiply, narrow, widen
from tiles.tiles cimport CATTN_FEW, CATTN_MANY, cattn_table


cdef inline void fill_portable(cattn_table *table) noexcept nogil:
    table.name = "portable"
    cdef int type
    for type in range(<int>CATTN_FLOATS):
        if type == <int>CATTN_FLOAT64:
            fill_doubles(&table.kernels[type][CATTN_MANY], &table.kernels[type][CATTN_FEW])
        else:
            fill_floats(&table.kernels[type][CATTN_MANY], &table.kernels[type][CATTN_FEW])
    table.interleave = NULL
    table.widen = widen
    table.narrow = narrow
    table.multiply = multiply
    table.round_to_float = round_to_float
