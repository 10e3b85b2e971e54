/* An extension module in C that calls cattn: for test_c_interface.py. */
#include <cattn.h>

#include <pthread.h>

int without_import(void);
const char *message_without_import(void);
int without_python(const cattn_c_api *api, const cattn_attention_args *args);

/* Read an array of `arguments`, which is (data, type, ndim, shape, strides), with numbers for addresses. */
static int read_array(PyObject *arguments, const char *name, cattn_ndarray *array)
{
    PyObject *given = PyDict_GetItemString(arguments, name);
    Py_ssize_t data, shape, strides;
    int type, ndim;
    if (given == NULL)
        return 0;
    if (!PyArg_ParseTuple(given, "niinn", &data, &type, &ndim, &shape, &strides))
        return -1;
    *array = cattn_ndarray_of((void *)data, type, ndim, (ptrdiff_t *)shape, (ptrdiff_t *)strides);
    return 0;
}

static double number(PyObject *arguments, const char *name)
{
    PyObject *given = PyDict_GetItemString(arguments, name);
    return given == NULL ? 0 : PyFloat_AsDouble(given);
}

static long long integer(PyObject *arguments, const char *name)
{
    PyObject *given = PyDict_GetItemString(arguments, name);
    return given == NULL ? 0 : PyLong_AsLongLong(given);
}

#define ARRAY(name) read_array(arguments, #name, &args->name) < 0

static int read_arguments(PyObject *arguments, cattn_attention_args *args)
{
    *args = cattn_attention_defaults();
    if (ARRAY(query) || ARRAY(key) || ARRAY(value) || ARRAY(out) || ARRAY(lse) || ARRAY(query_offset)
        || ARRAY(query_lengths) || ARRAY(key_lengths) || ARRAY(key_start) || ARRAY(key_stop) || ARRAY(mask)
        || ARRAY(bias) || ARRAY(alibi_slopes) || ARRAY(sinks) || ARRAY(key_scale) || ARRAY(value_scale))
        return -1;
    args->flags = (unsigned)integer(arguments, "flags");
    args->num_threads = (int)integer(arguments, "num_threads");
    args->scale = number(arguments, "scale");
    args->softcap = number(arguments, "softcap");
    args->window_left = integer(arguments, "window_left");
    args->window_right = integer(arguments, "window_right");
    if (PyDict_GetItemString(arguments, "struct_size"))
        args->struct_size = (size_t)integer(arguments, "struct_size");
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *answer(const cattn_attention_args *args, int status)
{
    char text[2000];
    cattn_explain(args, status, text, sizeof text);
    return Py_BuildValue("is", status, text);
}

static PyObject *attention(PyObject *module, PyObject *arguments)
{
    cattn_attention_args args;
    int status;
    (void)module;
    if (read_arguments(arguments, &args) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cattn_attention(&args);
    Py_END_ALLOW_THREADS
    return answer(&args, status);
}

/* Make the call with the GIL, in a file that knows nothing of Python. */
static PyObject *attention_without_python(PyObject *module, PyObject *arguments)
{
    cattn_attention_args args;
    (void)module;
    return read_arguments(arguments, &args) < 0 ? NULL : answer(&args, without_python(cattn_c, &args));
}

static PyObject *attention_without_import(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return Py_BuildValue("is", without_import(), message_without_import());
}

enum { MOST_THREADS = 16 };

struct call {
    cattn_attention_args args;
    int status;
};

static void *call_in_thread(void *call)
{
    ((struct call *)call)->status = cattn_attention(&((struct call *)call)->args);
    return NULL;
}

/* Make a list of calls at once. Each has a thread that Python does not know, with the smallest stack that cattn.h
 * promises to be enough. This thread holds the GIL meanwhile, so that a call that asked for it would wait for ever. */
static PyObject *attention_in_threads(PyObject *module, PyObject *list)
{
    const Py_ssize_t count = PyList_Size(list);
    struct call calls[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    pthread_attr_t attributes;
    int status = CATTN_DONE;
    (void)module;
    if (count < 0 || count > MOST_THREADS)
        return PyErr_Format(PyExc_ValueError, "expected at most %d calls", MOST_THREADS);
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_arguments(PyList_GetItem(list, i), &calls[i].args) < 0)
            return NULL;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (Py_ssize_t i = 0; i < count; i++)
        if (pthread_create(&threads[i], &attributes, call_in_thread, &calls[i]) != 0)
            Py_FatalError("no thread");
    for (Py_ssize_t i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        status = calls[i].status != CATTN_DONE ? calls[i].status : status;
    }
    pthread_attr_destroy(&attributes);
    return answer(NULL, status);
}

static PyMethodDef functions[] = {
    {"attention", attention, METH_O, NULL},
    {"attention_without_python", attention_without_python, METH_O, NULL},
    {"attention_without_import", attention_without_import, METH_NOARGS, NULL},
    {"attention_in_threads", attention_in_threads, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "in_c", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_in_c(void)
{
    return cattn_import() < 0 ? NULL : PyModule_Create(&module);
}
