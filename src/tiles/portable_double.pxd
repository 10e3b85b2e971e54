# The portable kernels of double.

ctypedef double real

include "portable.pxd"
include "portable_few.pxd"
include "portable_gradients.pxd"
include "portable_kernels.pxd"
