/* This file is a part of in_c, and knows nothing of Python. */
#define CATTN_NO_IMPORT
#include <cattn.h>

#ifdef Py_PYTHON_H
#error "Python.h came with cattn.h"
#endif

int without_python(const cattn_c_api *api, const cattn_attention_args *args);

int without_python(const cattn_c_api *api, const cattn_attention_args *args)
{
    return api->attention(args);
}
