/* cattn from C, C++ and Cython: exact attention, softmax(scale * query * key^T) * value.
 *
 * There are two functions. cattn_maxsim(&args) is Python's cattn.maxsim, in the same way as what follows.
 * The other one is cattn_attention(&args). Its struct says what to read, where to write and which keys each query
 * may attend to. It is Python's cattn.attention without Python: it has the same semantics and, on the same numbers, the
 * same bits. It returns a status. cattn_message(status) is a sentence about it, to which cattn_explain adds the shapes
 * and numbers of the call. Nothing is written unless all arguments have been accepted.
 *
 * The function works with and without the GIL: it never takes or releases the GIL, does not look at signals and raises
 * no exceptions. Any number of threads may call it at a time, whether Python knows them or not, and so may a forked
 * child. A calling thread needs 64 KiB of stack. Its floating-point mode and errno change no result, and stay as they
 * are. wants_to_stop is called in that mode.
 *
 * Building. The caller is an extension module, or a part of one. Compile it with the include folder that
 * cattn.get_include() returns (cythonize finds it by itself). There is nothing to link with. Instead, each source file
 * that calls the functions below first calls cattn_import(), once, with the GIL, when its module is initialised. This
 * imports cattn and fetches the addresses of the functions.
 * A file that does not use Python may define CATTN_NO_IMPORT before it includes this header. This leaves out Python.h,
 * cattn_import() and those functions. Pass such a file the pointer `cattn_c` of another file, and let it call
 * cattn_c->attention.
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
 *         char text[1000];
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
 *         if (status != CATTN_DONE) {
 *             cattn_explain(&args, status, text, sizeof text);
 *             return PyErr_Format(PyExc_ValueError, "%s", text);
 *         }
 *         return PyFloat_FromDouble(out[0][0][0]);
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
 * In Cython, on memory views of any strides (the shape of a memory view lives as long as its variable):
 *
 *     from cattn cimport *
 *
 *     cattn_import()
 *
 *     def attend(const float[:, :, :] query, const float[:, :, :] key, const float[:, :, :] value, float[:, :, :] out):
 *         cdef cattn_attention_args args = cattn_attention_defaults()
 *         cdef char[1000] text
 *         cdef int status
 *         args.query = cattn_ndarray_of(&query[0, 0, 0], CATTN_FLOAT32, 3, query.shape, query.strides)
 *         args.key = cattn_ndarray_of(&key[0, 0, 0], CATTN_FLOAT32, 3, key.shape, key.strides)
 *         args.value = cattn_ndarray_of(&value[0, 0, 0], CATTN_FLOAT32, 3, value.shape, value.strides)
 *         args.out = cattn_ndarray_of(&out[0, 0, 0], CATTN_FLOAT32, 3, out.shape, out.strides)
 *         args.flags = CATTN_CAUSAL | CATTN_OFFSET_END
 *         with nogil:
 *             status = cattn_attention(&args)
 *         if status != CATTN_DONE:
 *             cattn_explain(&args, status, text, sizeof(text))
 *             raise ValueError(text.decode())
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

/* The types of elements. float16 and bfloat16 are read and written as they are, and computed in float32. */
typedef enum {
    CATTN_FLOAT32 = 0,
    CATTN_FLOAT64 = 1,
    CATTN_FLOAT16 = 2,
    CATTN_BFLOAT16 = 3,
    CATTN_BOOL = 4,  /* one byte: 0 is false, anything else is true */
    CATTN_INT64 = 5,
    CATTN_INT8 = 6   /* keys and values that stand for their products with a scale */
} cattn_type;

/* An array, described as in NumPy, DLPack and Py_buffer. If all fields are 0, the array is not given. */
typedef struct {
    void *data;                /* the element (0, ..., 0); NULL if the array is not given or has no elements */
    int type;                  /* a cattn_type */
    int ndim;                  /* the number of axes, 0 to 64 */
    const ptrdiff_t *shape;    /* the number of elements along each axis; it may be NULL if ndim is 0 */
    const ptrdiff_t *strides;  /* the bytes from one element to the next along each axis. They may be 0 or negative, and
                                * of any alignment unless the array is said to be aligned. NULL means C-contiguous. */
} cattn_ndarray;

/* The bits of `flags`. */
enum {
    CATTN_CAUSAL = 1,        /* row i attends only to keys j <= p_i */
    CATTN_HAS_SCALE = 2,     /* `scale` is given; without this flag it must be 0 */
    CATTN_HAS_WINDOW = 4,    /* `window_left` and `window_right` are given; without this flag they must be 0 */
    CATTN_OFFSET_START = 8,  /* the first row of queries stands at the first key */
    CATTN_OFFSET_END = 16    /* the last row of queries stands at the last key, which is what a cache of keys needs */
};

/* The arguments of one call. Zeros are the defaults. Begin with cattn_attention_defaults(), or fill the struct with
 * zeros and set struct_size.
 *
 * Shapes. query is (..., Hq, Lq, D), key (..., Hkv, Lk, D), value (..., Hkv, Lk, Dv), out (..., Hq, Lq, Dv). Hq is a
 * multiple of Hkv, and query head h reads key and value head h / (Hq / Hkv). D is at most 16384. If all four have 2
 * axes, there is one head. The leading axes of the inputs broadcast by NumPy's rules, and out has the shape that they
 * broadcast to. An array with another order of axes, such as (batch, length, heads, size), is described with its shape
 * and strides in the order above.
 *
 * Types. query is float32, float64, float16 or bfloat16. key and value have the type of query. With a float32 query,
 * they may also be float16 or bfloat16. Unless query is float64, they may be int8, and then have scales. out has the
 * type of query. With a float16 or bfloat16 query, it may also be float32, and is then not rounded.
 *
 * Scores. The score of row i and key j is scale * dot(q, k). With a softcap it becomes softcap * tanh(score / softcap).
 * Then bias - slope * |p_i - j| is added, where p_i = query_offset + i is the position of row i. A row that may attend
 * to nothing gives zeros; its lse is -infinity, or the logit of its head's sink. Masked keys and values never reach
 * out, whatever they hold.
 *
 * Each argument is read where it lies. What is read must not change before the call has returned. out and lse must not
 * overlap each other, themselves or anything that is read. This is refused where it is easily seen: at a stride of 0,
 * at the same first element, or between two contiguous arrays. */
typedef struct {
    size_t struct_size;  /* sizeof(cattn_attention_args), as the caller was compiled. A later version may have more
                          * fields. A struct that ends behind an earlier field is read as if zeros followed. A longer
                          * struct is accepted only if all that this version does not know is 0. */
    unsigned flags;      /* the bits above */
    int num_threads;     /* the most threads of this call, including the caller; 0 means the caller alone. A call takes
                          * at most 4 threads for each processor, or 8 if that is more. The bits of the result do not
                          * depend on it. Calls from Python take cattn.get_num_threads() by default. */

    cattn_ndarray query, key, value;
    cattn_ndarray out;  /* the output, which is written */
    cattn_ndarray lse;  /* the logarithm of each row's softmax denominator, which is written if the array is given. Its
                         * shape is (..., Hq, Lq). Its type is float64 for float64 queries, else float32. It is aligned
                         * to its elements. */

    double scale;        /* finite, and 0 or normal in the type that is computed in. If not given, it is 1 / sqrt(D). */
    double softcap;      /* above 0; 0 means that there is none */
    int64_t window_left, window_right;  /* row i attends only to p_i - left <= j <= p_i + right; -1 means no limit */

    /* These have a number for each entry of the leading axes, to which they broadcast. With 0 axes, they have one
     * number for all entries. They are int64 and aligned. */
    cattn_ndarray query_offset;   /* -2^60 to 2^60. If neither it nor one of the two flags is given, it is 0. If Lq is
                                   * not Lk, and CATTN_CAUSAL, a window or slopes are given, one of the three must be
                                   * given. */
    cattn_ndarray query_lengths;  /* 0 to Lq. Rows at or past the length give zeros, and an lse of -infinity. */
    cattn_ndarray key_lengths;    /* 0 to Lk. Keys at or past the length do not exist. CATTN_OFFSET_END means the key
                                   * length - query length of each entry. */

    /* Row i attends only to start <= j < stop. Both broadcast to (..., Hq, Lq), and are int64 and aligned. Each may be
     * given alone. */
    cattn_ndarray key_start, key_stop;
    cattn_ndarray mask;          /* bool, broadcasts to (..., Hq, Lq, Lk): true where a query may attend to a key */
    cattn_ndarray bias;          /* any of the four types, broadcasts to (..., Hq, Lq, Lk). -infinity masks the key; a
                                  * finite number never does. */
    cattn_ndarray alibi_slopes;  /* any of the four types, (Hq,), or broadcasts to (..., Hq) */
    cattn_ndarray sinks;         /* any of the four types, (Hq,): one more logit for each head. It takes weight and
                                  * carries no value. -infinity means that there is none. */

    /* The calling thread, and no other, calls this about every 20 ms, with `context`. If it returns anything but 0, the
     * call gives up. It may take the GIL, and must return. If it is NULL, the call runs to its end. */
    int (*wants_to_stop)(void *context);
    void *context;

    /* int8 keys and values need these: the keys are key * key_scale, and the values value * value_scale. Each is any of
     * the four types, and broadcasts to (..., Hkv, Lk, D) or (..., Hkv, Lk, Dv), with size 1 along Lk (a scale for each
     * column) or along the last axis (a scale for each key). */
    cattn_ndarray key_scale, value_scale;
} cattn_attention_args;

/* The arguments of Python's cattn.maxsim. Start from cattn_maxsim_defaults(). Arrays may have any strides. */
typedef struct {
    size_t struct_size;              /* set by cattn_maxsim_defaults() */
    int num_threads;                 /* 0 means 1 */

    cattn_ndarray query;             /* (Lq, D) or (Q, Lq, D), any of the four types. D is 1 to 16384. */
    cattn_ndarray document;          /* (N, Ld, D), or with document_indptr (all tokens, D). It has the type of query, or
                                      * CATTN_FLOAT16 or CATTN_BFLOAT16 beside CATTN_FLOAT32. */
    cattn_ndarray out;               /* (N), or (Q, N): CATTN_FLOAT64 if query is, else CATTN_FLOAT32 */

    /* Optional arrays, which are CATTN_INT64. The first three are aligned. */
    cattn_ndarray query_lengths;     /* (Q): 0 to Lq. One query has 1 length. */
    cattn_ndarray document_lengths;  /* (N): 0 to Ld */
    cattn_ndarray document_indptr;   /* (N + 1), contiguous: ascending from 0 to the number of all tokens */
    cattn_ndarray index;             /* (N, Lq), or (Q, N, Lq): where to write which token of a document won, or -1 */

    int (*wants_to_stop)(void *context);   /* as above */
    void *context;
} cattn_maxsim_args;

/* A status is one of these, or it says which argument is wrong, and what is wrong with it. CATTN_ARGUMENT_OF(status)
 * and CATTN_REASON_OF(status) are then constants of the two lists that follow. */
typedef enum {
    CATTN_DONE = 0,
    CATTN_STOPPED = 1,         /* wants_to_stop said so. The contents of out and lse are unspecified. */
    CATTN_NO_MEMORY = 2,       /* There is no memory for the workspace or for partial results. The contents of out and
                                * lse are unspecified. The workspace is at most 1 MiB a thread where D and Dv are 256 or
                                * less. Partial results exist where up to 8 rows share a key head. They are 3 + Dv
                                * numbers of each row for every chunk of up to 2048 keys. One thread holds those of one
                                * key head at a time. */
    CATTN_TOO_MANY_TASKS = 3,  /* The leading axes broadcast to more than any memory holds. */
    CATTN_NOT_IMPORTED = 4     /* This source file has not called cattn_import(). */
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
    CATTN_ARGUMENT_SINKS,
    CATTN_ARGUMENT_KEY_SCALE,
    CATTN_ARGUMENT_VALUE_SCALE
};

/* Those of cattn_maxsim. */
enum {
    CATTN_MAXSIM_ARGS = 64,   /* the struct itself */
    CATTN_MAXSIM_NUM_THREADS,
    CATTN_MAXSIM_QUERY,
    CATTN_MAXSIM_DOCUMENT,
    CATTN_MAXSIM_OUT,
    CATTN_MAXSIM_QUERY_LENGTHS,
    CATTN_MAXSIM_DOCUMENT_LENGTHS,
    CATTN_MAXSIM_DOCUMENT_INDPTR,
    CATTN_MAXSIM_INDEX,
    CATTN_MAXSIM_END          /* one more than the last */
};

enum {
    CATTN_IS_NULL = 1,   /* the struct, an array that must be given, or its shape is NULL */
    CATTN_WRONG_SHAPE,   /* the shape is wrong by itself, or beside the other arguments */
    CATTN_WRONG_TYPE,
    CATTN_WRONG_VALUE,   /* the number, or a number in the array, is wrong */
    CATTN_MISALIGNED,    /* the array must be aligned and is not */
    CATTN_OVERLAPS,      /* the array is written and overlaps another one or itself */
    CATTN_IS_MISSING,    /* the other arguments need this one */
    CATTN_IS_UNKNOWN     /* this version does not know something that was given: update cattn */
};

/* cattn_import() fetches this struct. `abi` is raised when something here changes in such a way that callers must be
 * compiled again. `version` is raised when a function is added. cattn serves callers of the same abi whose version is
 * not later than its own. */
#define CATTN_C_ABI 1
#define CATTN_C_VERSION 3

typedef struct {
    int abi, version;
    int (*attention)(const cattn_attention_args *args);
    const char *(*message)(int status);
    size_t (*explain)(const cattn_attention_args *args, int status, char *text, size_t size);
    int (*maxsim)(const cattn_maxsim_args *args);
} cattn_c_api;

/* Return the defaults: all fields are 0 except struct_size. query, key, value and out have no default. */
static inline cattn_attention_args cattn_attention_defaults(void)
{
    cattn_attention_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    return args;
}

/* Return the defaults: all fields are 0 except struct_size. query, document and out have no default. */
static inline cattn_maxsim_args cattn_maxsim_defaults(void)
{
    cattn_maxsim_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    return args;
}

/* Return the description of an array. */
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

/* Import cattn and fetch its functions. Return 0, or -1 with ImportError set. Call it with the GIL. */
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
                     found->abi > CATTN_C_ABI ? "compile this module again" : "update cattn");
        return -1;
    }
    cattn_c = found;
    return 0;
}

/* Compute attention and write its output. Return CATTN_DONE, or a status that says why there is no output. */
static inline int cattn_attention(const cattn_attention_args *args)
{
    return cattn_c == NULL ? (int)CATTN_NOT_IMPORTED : cattn_c->attention(args);
}

/* Score documents for queries, and write the scores. Return CATTN_DONE, or a status that says why there are none. */
static inline int cattn_maxsim(const cattn_maxsim_args *args)
{
    return cattn_c == NULL ? (int)CATTN_NOT_IMPORTED : cattn_c->maxsim(args);
}

/* Return a sentence about a status: it names the argument, what was expected of it, and what to write instead. The text
 * lives as long as the process. */
static inline const char *cattn_message(int status)
{
    return cattn_c == NULL ? "cattn_import() has not been called in this source file" : cattn_c->message(status);
}

/* Write that sentence and what was given, for example "key: expected shape (...), ...; got (2, 8, 100, 63); query has
 * (2, 8, 100, 64)". `args` are those of the call that returned the status, and what they point to must still be there.
 * At most `size` bytes are written, the last of which is 0. Return the length of the whole text without that 0, as
 * snprintf does. 1,000 bytes hold most texts. */
static inline size_t cattn_explain(const cattn_attention_args *args, int status, char *text, size_t size)
{
    if (cattn_c == NULL) {
        if (size > 0)
            text[0] = 0;
        return 0;
    }
    return cattn_c->explain(args, status, text, size);
}

#endif

#ifdef __cplusplus
}
#endif

#endif
