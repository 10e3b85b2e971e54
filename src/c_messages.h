/* What a status of cattn.h says in a sentence, and what was given to the call that returned it. */
#ifndef CATTN_C_MESSAGES_H
#define CATTN_C_MESSAGES_H

#include <stdarg.h>
#include <stdio.h>

#include "c_arguments.h"

/* Return the row of the argument that is wrong, or NULL if the status does not say that one is. */
static const cattn_argument *cattn_wrong_argument(int status)
{
    const size_t argument = (size_t)CATTN_ARGUMENT_OF(status), reason = (size_t)CATTN_REASON_OF(status);
    if (argument >= CATTN_ARGUMENTS || reason > CATTN_IS_UNKNOWN || cattn_arguments[argument].messages[reason] == NULL)
        return NULL;
    return &cattn_arguments[argument];
}

/* What is expected of each argument of cattn_maxsim, in the order of their numbers. */
static const char *const cattn_maxsim_messages[CATTN_MAXSIM_END - CATTN_MAXSIM_ARGS] = {
    "args: expected a struct that begins as cattn_maxsim_defaults() and that this version of cattn knows",
    "num_threads: expected 0 or more",
    "query: expected (Lq, D) or (Q, Lq, D) of CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOAT16 or CATTN_BFLOAT16, with D from "
    "1 to 16384",
    "document: expected (N, Ld, D), or (all tokens, D) with document_indptr, of the type of query, or of CATTN_FLOAT16 or "
    "CATTN_BFLOAT16 beside CATTN_FLOAT32",
    "out: expected (N), or (Q, N) if query has 3 axes, of CATTN_FLOAT64 if query has it, else CATTN_FLOAT32, in memory of "
    "its own",
    "query_lengths: expected (Q) aligned CATTN_INT64 from 0 to Lq",
    "document_lengths: expected (N) aligned CATTN_INT64 from 0 to Ld, and none beside document_indptr",
    "document_indptr: expected (N + 1) contiguous, aligned CATTN_INT64 that ascend from 0 to the number of all tokens, "
    "beside a document of 2 axes and only there",
    "index: expected (N, Lq), or (Q, N, Lq) if query has 3 axes, of CATTN_INT64, in memory of its own"};

static const char *cattn_status_message(int status)
{
    const cattn_argument *argument = cattn_wrong_argument(status);
    switch (status) {
    case CATTN_DONE: return "done";
    case CATTN_STOPPED: return "wants_to_stop said so";
    case CATTN_NO_MEMORY: return "there is no memory for the workspace; fewer threads take less";
    case CATTN_TOO_MANY_TASKS: return "query, key: expected a batch of at most 2^48 tasks";
    case CATTN_NOT_IMPORTED: return "cattn_import() has not been called in this source file";
    }
    if (status >> 8 >= CATTN_MAXSIM_ARGS && status >> 8 < CATTN_MAXSIM_END)
        return cattn_maxsim_messages[(status >> 8) - CATTN_MAXSIM_ARGS];
    return argument == NULL ? "this is not a status of cattn" : argument->messages[CATTN_REASON_OF(status)];
}

/* Text that grows in the caller's memory. What does not fit is counted and left out, as in snprintf. */
typedef struct {
    char *memory;
    size_t size, length;
} cattn_text;

static void cattn_add(cattn_text *text, const char *format, ...)
{
    const size_t left = text->length < text->size ? text->size - text->length : 0;
    va_list values;
    int length;
    va_start(values, format);
    length = vsnprintf(left > 0 ? text->memory + text->length : NULL, left, format, values);
    va_end(values);
    text->length += length > 0 ? (size_t)length : 0;
}

static void cattn_add_shape(cattn_text *text, const cattn_ndarray *array)
{
    if (array->ndim < 0 || array->ndim > CATTN_AXES) {
        cattn_add(text, " ndim %d", array->ndim);
        return;
    }
    cattn_add(text, " (");
    for (int axis = 0; array->shape != NULL && axis < array->ndim; axis++)
        cattn_add(text, axis > 0 ? ", %td" : "%td", array->shape[axis]);
    cattn_add(text, array->ndim == 1 ? ",)" : ")");
}

/* Add the shape of an array and those of the inputs, because a shape is usually wrong beside theirs. */
static void cattn_add_shapes(cattn_text *text, const cattn_attention_args *args, const cattn_ndarray *array)
{
    cattn_add(text, "; got");
    cattn_add_shape(text, array);
    if (array->ndim < 0 || array->ndim > CATTN_AXES)
        return;
    for (int number = 0; number < CATTN_ARGUMENTS; number++) {
        const cattn_ndarray *input = cattn_given(args, number);
        if (!cattn_arguments[number].is_input || input == array || input->shape == NULL)
            continue;
        cattn_add(text, "; %s has", cattn_arguments[number].name);
        cattn_add_shape(text, input);
    }
}

static void cattn_add_type(cattn_text *text, const cattn_ndarray *array)
{
    static const char *const names[] = {
        [CATTN_FLOAT32] = "CATTN_FLOAT32", [CATTN_FLOAT64] = "CATTN_FLOAT64", [CATTN_FLOAT16] = "CATTN_FLOAT16",
        [CATTN_BFLOAT16] = "CATTN_BFLOAT16", [CATTN_BOOL] = "CATTN_BOOL", [CATTN_INT64] = "CATTN_INT64",
        [CATTN_INT8] = "CATTN_INT8"};
    if (array->type >= 0 && (size_t)array->type < sizeof names / sizeof *names)
        cattn_add(text, "; got %s", names[array->type]);
    else
        cattn_add(text, "; got %d", array->type);
}

typedef void (*cattn_find_range)(const cattn_ndarray *array, int64_t *least, int64_t *most);

/* Add a number that is wrong, or the range of the integers in an array. */
static void cattn_add_value(cattn_text *text, const cattn_argument *argument, const void *given,
                            cattn_find_range find_range)
{
    int64_t least, most;
    switch (argument->kind) {
    case CATTN_KIND_SIZE: cattn_add(text, "; got %zu", *(const size_t *)given); break;
    case CATTN_KIND_FLAGS: cattn_add(text, "; got 0x%x", *(const unsigned *)given); break;
    case CATTN_KIND_INT: cattn_add(text, "; got %d", *(const int *)given); break;
    case CATTN_KIND_DOUBLE: cattn_add(text, "; got %g", *(const double *)given); break;
    case CATTN_KIND_PAIR:
        cattn_add(text, "; got %lld, %lld", (long long)((const int64_t *)given)[0],
                  (long long)((const int64_t *)given)[1]);
        break;
    case CATTN_KIND_ARRAY:
        if (argument->types != CATTN_INTEGERS)
            break;
        find_range(given, &least, &most);
        cattn_add(text, least == most ? "; got %lld" : "; got %lld to %lld", (long long)least, (long long)most);
    }
}

static size_t cattn_explain_status(const cattn_attention_args *args, int status, cattn_find_range find_range,
                                   char *memory, size_t size)
{
    const int number = CATTN_ARGUMENT_OF(status), reason = CATTN_REASON_OF(status);
    const cattn_argument *argument = cattn_wrong_argument(status);
    cattn_text text = {memory, size, 0};
    cattn_add(&text, "%s", cattn_status_message(status));
    if (args == NULL || argument == NULL)
        return text.length;
    if (reason == CATTN_WRONG_VALUE)
        cattn_add_value(&text, argument, cattn_given(args, number), find_range);
    else if (reason == CATTN_WRONG_SHAPE)
        cattn_add_shapes(&text, args, cattn_given(args, number));
    else if (reason == CATTN_WRONG_TYPE)
        cattn_add_type(&text, cattn_given(args, number));
    else if (reason == CATTN_IS_MISSING && number == CATTN_ARGUMENT_QUERY_OFFSET)
        cattn_add(&text, "; got %td and %td", args->query.shape[args->query.ndim - 2],
                  args->key.shape[args->key.ndim - 2]);
    return text.length;
}

#endif
