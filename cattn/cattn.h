/* cattn from C, C++ and Cython: exact attention, softmax(scale * query * key^T) * value.
 *
 * One function, cattn_attention(&args), on a struct that says what to read, where to write and who may attend to whom.
 * It is cattn.attention of Python without Python: the same semantics and, on the same numbers, the same bits. It
 * answers a status, of which cattn_message(status) is a sentence. Nothing is written unless all arguments have been
 * accepted.
 *
 * It needs no GIL and works under it: it never takes or releases the GIL, polls no signals and raises nothing. Any
 * number of threads may call it at a time, whether Python knows them or not, and so may a forked child. A thread that
 * does needs 64 KiB of stack.
 *
 * Building. Whoever calls it is an extension module, or a part of one, that is compiled with the folder that
 * cattn.get_include() names (cythonize finds it by itself). There is nothing to link with: each source file that calls
 * the functions below first calls cattn_import(), once, with the GIL, when its module is initialised. That imports
 * cattn and fetches their addresses.
 * A file that knows nothing of Python may define CATTN_NO_IMPORT before it includes this header, which leaves out
 * Python.h, cattn_import() and those functions; it is handed `cattn_c`, of another file, and calls cattn_c->attention.
 *
 * In C:
 *
 *     #include <cattn.h>
 *
 *     static PyObject *attend(PyObject *module, PyObject *unused)
 *     {
 *         const float query[2][3][8] = {{{1}}}, key[2][4][8] = {{{1}}}, value[2][4][5] = {{{1}}};
 *         const ptrdiff_t query_shape[] = {2, 3, 8}, key_shape[] = {2, 4, 8}; // heads, length, size
 *         const ptrdiff_t value_shape[] = {2, 4, 5}, out_shape[] = {2, 3, 5};
 *         float out[2][3][5];
 *         cattn_attention_args args = cattn_attention_defaults();
 *         int status;
 *
 *         args.query = cattn_ndarray_of(query, CATTN_FLOAT32, 3, query_shape, NULL); // NULL: contiguous
 *         args.key = cattn_ndarray_of(key, CATTN_FLOAT32, 3, key_shape, NULL);
 *         args.value = cattn_ndarray_of(value, CATTN_FLOAT32, 3, value_shape, NULL);
 *         args.out = cattn_ndarray_of(out, CATTN_FLOAT32, 3, out_shape, NULL);
 *         args.flags = CATTN_CAUSAL | CATTN_OFFSET_END;
 *         Py_BEGIN_ALLOW_THREADS
 *         status = cattn_attention(&args);
 *         Py_END_ALLOW_THREADS
 *         (void)module, (void)unused;
 *         return status == CATTN_DONE ? PyFloat_FromDouble(out[0][0][0])
 *                                     : PyErr_Format(PyExc_ValueError, "%s", cattn_message(status));
 *     }
 *
 *     static PyMethodDef functions[] = {{"attend", attend, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
 *     static struct PyModuleDef module = {
 *         PyModuleDef_HEAD_INIT, "example_in_c", NULL, -1, functions, NULL, NULL, NULL, NULL};
 *
 *     PyMODINIT_FUNC PyInit_example_in_c(void)
 *     {
 *         return cattn_import() < 0 ? NULL : PyModule_Create(&module);
 *     }
 *
 * In Cython, on memory views of any strides (the shape of one lives as long as the variable does):
 *
 *     from cattn cimport *
 *
 *     cattn_import()
 *
 *     def attend(const float[:, :, :] query, const float[:, :, :] key, const float[:, :, :] value, float[:, :, :] out):
 *         cdef cattn_attention_args args = cattn_attention_defaults()
 *         cdef int status
 *         args.query = cattn_ndarray_of(&query[0, 0, 0], CATTN_FLOAT32, 3, query.shape, query.strides)
 *         args.key = cattn_ndarray_of(&key[0, 0, 0], CATTN_FLOAT32, 3, key.shape, key.strides)
 *         args.value = cattn_ndarray_of(&value[0, 0, 0], CATTN_FLOAT32, 3, value.shape, value.strides)
 *         args.out = cattn_ndarray_of(&out[0, 0, 0], CATTN_FLOAT32, 3, out.shape, out.strides)
 *         args.flags = CATTN_CAUSAL | CATTN_OFFSET_END
 *         with nogil:
 *             status = cattn_attention(&args)
 *         if status != CATTN_DONE:
 *             raise ValueError(cattn_message(status).decode())
 */
#ifndef CATTN_H
#define CATTN_H

#ifndef CATTN_NO_IMPORT
#include <Python.h>
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The types of elements. float16 and bfloat16 are read and written, and float32 is computed. */
typedef enum {
    CATTN_FLOAT32 = 0,
    CATTN_FLOAT64 = 1,
    CATTN_FLOAT16 = 2,
    CATTN_BFLOAT16 = 3,
    CATTN_BOOL = 4,  /* a byte: 0, or anything else for true */
    CATTN_INT64 = 5
} cattn_type;

/* An array as NumPy, DLPack and Py_buffer describe one. All zeros: not given. */
typedef struct {
    void *data;                /* its element (0, ..., 0); NULL: not given, or without any element */
    int type;                  /* a cattn_type */
    int ndim;                  /* axes: 0 to 64 */
    const ptrdiff_t *shape;    /* of each axis, its number of elements; may be NULL where ndim is 0 */
    const ptrdiff_t *strides;  /* of each axis, the bytes from one element to the next: 0 and negative included, and of
                                * any alignment; NULL: C-contiguous */
} cattn_ndarray;

/* What `flags` are made of. */
enum {
    CATTN_CAUSAL = 1,        /* row i attends to keys j <= p_i only */
    CATTN_HAS_SCALE = 2,     /* `scale` is given; without this flag it must be 0 */
    CATTN_HAS_WINDOW = 4,    /* `window_left` and `window_right` are given; without this flag they must be 0 */
    CATTN_OFFSET_START = 8,  /* the first row of queries stands at the first key */
    CATTN_OFFSET_END = 16    /* the last row of queries stands at the last key, as a cache of keys wants it */
};

/* The arguments of one call. Zeros are defaults: begin with cattn_attention_defaults(), or fill it with zeros and set
 * struct_size.
 *
 * Shapes. query is (..., Hq, Lq, D), key (..., Hkv, Lk, D), value (..., Hkv, Lk, Dv), out (..., Hq, Lq, Dv). Hq is a
 * multiple of Hkv, and query head h reads key and value head h / (Hq / Hkv). 2 axes, of all four, are one head. Leading
 * axes of what is read broadcast by NumPy's rules; out has the shape that they broadcast to. Arrays of another order,
 * such as (batch, length, heads, size), are described with their shape and strides in the order above.
 *
 * Types. query is float32, float64, float16 or bfloat16. key and value have its type, or they are float16 or bfloat16
 * beside float32. out has the type of query, or it is float32 beside float16 and bfloat16, and not rounded then.
 *
 * Scores. That of row i of the queries and key j is scale * dot(q, k), then softcap * tanh(score / softcap), then
 * + bias - slope * |p_i - j|, where row i stands at position p_i = query_offset + i. A row that may attend to nothing
 * gives zeros, and -infinity in lse. What is masked by anything below never reaches out, whatever stands there.
 *
 * Each argument is read where it lies. What is read must not change before the call has returned; out and lse must
 * overlap neither each other, nor themselves, nor what is read (which is refused where it is seen at a glance: a stride
 * of 0, the same first element, or two contiguous arrays). */
typedef struct {
    size_t struct_size;  /* sizeof(cattn_attention_args), as the caller was compiled. A later version may know more
                          * fields. A shorter struct that ends behind a field is taken as if zeros came behind it, a
                          * longer one where zeros do: what this version does not know is refused. */
    unsigned flags;      /* of those above */
    int num_threads;     /* at most, the caller counted; 0: the caller alone. A call takes no more than 4 for each
                          * processor, or 8. The bits of the result do not depend on it. What Python's calls take by
                          * default is cattn.get_num_threads(). */

    cattn_ndarray query, key, value;
    cattn_ndarray out;  /* written */
    cattn_ndarray lse;  /* written where it is given: the logarithm of each row's softmax denominator, of shape (...,
                         * Hq, Lq), float64 for float64 queries, else float32, aligned to its elements */

    double scale;        /* finite; 0, or normal in the type that is computed in. Not given: 1 / sqrt(D) */
    double softcap;      /* above 0; 0: none */
    int64_t window_left, window_right;  /* p_i - left <= j <= p_i + right only; -1: no limit on that side */

    /* For each entry of the leading axes, to which they broadcast: int64, aligned. Of 0 axes, one for all. */
    cattn_ndarray query_offset;   /* -2^60 to 2^60. Not given, and neither of the two flags: 0. Where CATTN_CAUSAL, a
                                   * window or slopes are given and Lq is not Lk, one of the three must be given. */
    cattn_ndarray query_lengths;  /* 0 to Lq: rows at or past it give zeros, and an lse of -infinity */
    cattn_ndarray key_lengths;    /* 0 to Lk: keys at or past it do not exist. CATTN_OFFSET_END is key length - query
                                   * length of each entry. */

    /* Broadcast to (..., Hq, Lq), int64, aligned: row i attends to start <= j < stop only. Each may be given alone. */
    cattn_ndarray key_start, key_stop;
    cattn_ndarray mask;          /* broadcasts to (..., Hq, Lq, Lk), bool: true where a query may attend to a key */
    cattn_ndarray bias;          /* broadcasts to (..., Hq, Lq, Lk), any of the four types. -infinity masks, a finite
                                  * number never does */
    cattn_ndarray alibi_slopes;  /* (Hq,), or broadcasts to (..., Hq), any of the four types */
    cattn_ndarray sinks;         /* (Hq,), any of the four types: one more logit a head, which takes weight and carries
                                  * no value. -infinity is none */

    /* Asked about every 20 ms whether to give up, by the thread that called and no other; not 0: yes. It is handed
     * `context`, may take the GIL, and must return. NULL: nobody is asked. */
    int (*wants_to_stop)(void *context);
    void *context;
} cattn_attention_args;

/* A status is one of these, or says which argument is wrong, and in what:
 * CATTN_ARGUMENT_OF(status) and CATTN_REASON_OF(status), of the two lists that follow. */
typedef enum {
    CATTN_DONE = 0,
    CATTN_STOPPED = 1,         /* wants_to_stop said so: what out and lse hold is unspecified */
    CATTN_NO_MEMORY = 2,       /* for the workspace, at most 1 MiB a thread where D and Dv are 256 or less, and for
                                * partial results: where up to 8 rows share a key head, 3 + Dv numbers of each row for
                                * every chunk of up to 2048 keys (on one thread, of one key head at a time); as above */
    CATTN_TOO_MANY_TASKS = 3,  /* the leading axes broadcast to more than any memory holds */
    CATTN_NOT_IMPORTED = 4     /* this source file has not called cattn_import() */
} cattn_status;

#define CATTN_ARGUMENT_OF(status) ((status) >> 8)
#define CATTN_REASON_OF(status) ((status) & 255)

enum {
    CATTN_ARGUMENT_ARGS = 1,  /* the struct itself */
    CATTN_ARGUMENT_FLAGS,
    CATTN_ARGUMENT_NUM_THREADS,
    CATTN_ARGUMENT_SCALE,
    CATTN_ARGUMENT_SOFTCAP,
    CATTN_ARGUMENT_WINDOW,
    CATTN_ARGUMENT_QUERY,
    CATTN_ARGUMENT_KEY,
    CATTN_ARGUMENT_VALUE,
    CATTN_ARGUMENT_OUT,
    CATTN_ARGUMENT_LSE,
    CATTN_ARGUMENT_QUERY_OFFSET,
    CATTN_ARGUMENT_QUERY_LENGTHS,
    CATTN_ARGUMENT_KEY_LENGTHS,
    CATTN_ARGUMENT_KEY_START,
    CATTN_ARGUMENT_KEY_STOP,
    CATTN_ARGUMENT_MASK,
    CATTN_ARGUMENT_BIAS,
    CATTN_ARGUMENT_ALIBI_SLOPES,
    CATTN_ARGUMENT_SINKS
};

enum {
    CATTN_IS_NULL = 1,   /* an array that must be given, its shape, or the struct */
    CATTN_WRONG_SHAPE,   /* by itself, or beside the other arguments */
    CATTN_WRONG_TYPE,
    CATTN_WRONG_VALUE,   /* of a number, or of one of an array's */
    CATTN_MISALIGNED,    /* an array that must be aligned is not */
    CATTN_OVERLAPS,      /* an array that is written, and another */
    CATTN_IS_MISSING,    /* something that the other arguments ask for */
    CATTN_IS_UNKNOWN     /* something that this version does not know: update cattn */
};

/* What cattn_import() fetches. `abi` is raised where something here changes, so that callers must be compiled anew,
 * `version` where a function is added. cattn serves callers of the same abi and of no later version. */
#define CATTN_C_ABI 1
#define CATTN_C_VERSION 1

typedef struct {
    int abi, version;
    int (*attention)(const cattn_attention_args *args);
    const char *(*message)(int status);
} cattn_c_api;

/* The defaults: all zeros but for struct_size. query, key, value and out have none. */
static inline cattn_attention_args cattn_attention_defaults(void)
{
    cattn_attention_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    return args;
}

static inline cattn_ndarray cattn_ndarray_of(const void *data, int type, int ndim, const ptrdiff_t *shape,
                                             const ptrdiff_t *strides)
{
    cattn_ndarray array;
    array.data = (void *)data; /* only out and lse are written to */
    array.type = type;
    array.ndim = ndim;
    array.shape = shape;
    array.strides = strides;
    return array;
}

#ifndef CATTN_NO_IMPORT

static const cattn_c_api *cattn_c = NULL;

/* 0, or -1 with ImportError set. Under the GIL. */
static inline int cattn_import(void)
{
    const cattn_c_api *found = (const cattn_c_api *)PyCapsule_Import("cattn._kernel.c_api", 0);
    if (found == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_SetString(PyExc_ImportError,
                            "cattn: expected a version with an interface for C, found one without it; update cattn");
        return -1;
    }
    if (found->abi != CATTN_C_ABI || found->version < CATTN_C_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "cattn: expected version %d.%d of the interface for C, for which this module was compiled, "
                     "found %d.%d; %s", CATTN_C_ABI, CATTN_C_VERSION, found->abi, found->version,
                     found->abi > CATTN_C_ABI ? "compile this module anew" : "update cattn");
        return -1;
    }
    cattn_c = found;
    return 0;
}

/* The output of attention. CATTN_DONE, or why there is none. */
static inline int cattn_attention(const cattn_attention_args *args)
{
    return cattn_c == NULL ? (int)CATTN_NOT_IMPORTED : cattn_c->attention(args);
}

/* What a status says, in a sentence that lives as long as the process: the argument, what was expected of it, and what
 * to write instead. */
static inline const char *cattn_message(int status)
{
    return cattn_c == NULL ? "cattn_import() has not been called in this source file" : cattn_c->message(status);
}

#endif

#ifdef __cplusplus
}
#endif

#endif
