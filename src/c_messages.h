/* What the statuses of cattn.h say, in a sentence each, and what the arguments of a call were. */
#ifndef CATTN_C_MESSAGES_H
#define CATTN_C_MESSAGES_H

#include <stdarg.h>
#include <stdio.h>

#include "problem.h"

#define CATTN_AXES 64

#define CATTN_FLOATS_EXPECTED "CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOAT16 or CATTN_BFLOAT16"
#define CATTN_ENTRIES "a shape that broadcasts to the leading axes of query, key and value, or 0 axes"
#define CATTN_ROWS "a shape that broadcasts to (..., Hq, Lq)"
#define CATTN_SCORES "a shape that broadcasts to (..., Hq, Lq, Lk)"

/* An array that must be given, or may be, and what of it is the same for all. */
#define CATTN_ARRAY(name, type, shape) \
    [CATTN_WRONG_TYPE] = name ": expected type " type, \
    [CATTN_WRONG_SHAPE] = name ": expected " shape ", of 64 axes at most, each of 0 or more elements"
#define CATTN_NEEDED(name, type, shape) \
    CATTN_ARRAY(name, type, shape), [CATTN_IS_NULL] = name ": expected data and a shape, got NULL"
#define CATTN_OPTIONAL(name, type, shape) \
    CATTN_ARRAY(name, type, shape), [CATTN_IS_NULL] = name ": expected a shape beside the data, got NULL"
#define CATTN_INTEGERS(name, shape) \
    CATTN_OPTIONAL(name, "CATTN_INT64", shape), \
    [CATTN_MISALIGNED] = name ": expected data and strides that are multiples of 8 bytes"
#define CATTN_OVERLAP(name) \
    [CATTN_OVERLAPS] = name ": expected memory of its own, got an array that overlaps itself or another argument"

static const char *const cattn_wrong_argument[][CATTN_IS_UNKNOWN + 1] = {
    [CATTN_ARGUMENT_ARGS] = {
        [CATTN_IS_NULL] = "args: expected a cattn_attention_args, got NULL",
        [CATTN_WRONG_VALUE] = "struct_size: expected sizeof(cattn_attention_args); call cattn_attention_defaults()",
        [CATTN_IS_UNKNOWN] = "args: this version of cattn does not know all fields that are given; update cattn"},
    [CATTN_ARGUMENT_FLAGS] = {
        [CATTN_WRONG_VALUE] = "flags: expected one of CATTN_OFFSET_START, CATTN_OFFSET_END and query_offset at most",
        [CATTN_IS_UNKNOWN] = "flags: this version of cattn does not know all that are given; update cattn"},
    [CATTN_ARGUMENT_NUM_THREADS] = {
        [CATTN_WRONG_VALUE] = "num_threads: expected 1 or more, or 0 for the calling thread alone"},
    [CATTN_ARGUMENT_SCALE] = {
        [CATTN_WRONG_VALUE] = "scale: expected 0, or a finite number that the type computed in holds in full precision",
        [CATTN_IS_MISSING] = "scale: expected CATTN_HAS_SCALE among the flags beside a scale"},
    [CATTN_ARGUMENT_SOFTCAP] = {
        [CATTN_WRONG_VALUE] = "softcap: expected a finite number above 0, or 0 for none"},
    [CATTN_ARGUMENT_WINDOW] = {
        [CATTN_WRONG_VALUE] = "window_left, window_right: expected 0 or more, or -1 for no limit on that side",
        [CATTN_IS_MISSING] = "window_left, window_right: expected CATTN_HAS_WINDOW among the flags beside a window"},
    [CATTN_ARGUMENT_QUERY] = {
        CATTN_NEEDED("query", CATTN_FLOATS_EXPECTED, "shape (..., Hq, Lq, D) or (Lq, D), with D from 1 to 16384")},
    [CATTN_ARGUMENT_KEY] = {
        CATTN_NEEDED("key", "of query, or CATTN_FLOAT16 or CATTN_BFLOAT16 beside CATTN_FLOAT32",
                     "shape (..., Hkv, Lk, D) or (Lk, D) like query, with its D, an Hkv that divides its Hq, and "
                     "leading axes that broadcast")},
    [CATTN_ARGUMENT_VALUE] = {
        CATTN_NEEDED("value", "of key",
                     "shape (..., Hkv, Lk, Dv) or (Lk, Dv) like key, with its Hkv and Lk, and leading axes that "
                     "broadcast")},
    [CATTN_ARGUMENT_OUT] = {
        CATTN_NEEDED("out", "of query, or CATTN_FLOAT32 beside CATTN_FLOAT16 and CATTN_BFLOAT16",
                     "shape (..., Hq, Lq, Dv) or (Lq, Dv) like query, with the leading axes of all inputs, broadcast"),
        CATTN_OVERLAP("out")},
    [CATTN_ARGUMENT_LSE] = {
        CATTN_OPTIONAL("lse", "CATTN_FLOAT64 beside query of CATTN_FLOAT64, else CATTN_FLOAT32",
                       "the shape of out but for its last axis"),
        CATTN_OVERLAP("lse"),
        [CATTN_MISALIGNED] = "lse: expected data and strides that are multiples of an element's bytes"},
    [CATTN_ARGUMENT_QUERY_OFFSET] = {
        CATTN_INTEGERS("query_offset", CATTN_ENTRIES),
        [CATTN_WRONG_VALUE] = "query_offset: expected integers from -2^60 to 2^60",
        [CATTN_IS_MISSING] = "query_offset: expected CATTN_OFFSET_START (row 0 of the queries stands at key 0) or "
                             "CATTN_OFFSET_END (the last row stands at the last key; a cache of keys wants it) among "
                             "the flags, or query_offset, because CATTN_CAUSAL, a window or alibi_slopes is given and "
                             "the lengths of query and key differ"},
    [CATTN_ARGUMENT_QUERY_LENGTHS] = {
        CATTN_INTEGERS("query_lengths", CATTN_ENTRIES),
        [CATTN_WRONG_VALUE] = "query_lengths: expected integers from 0 to Lq, the length of query"},
    [CATTN_ARGUMENT_KEY_LENGTHS] = {
        CATTN_INTEGERS("key_lengths", CATTN_ENTRIES),
        [CATTN_WRONG_VALUE] = "key_lengths: expected integers from 0 to Lk, the length of key"},
    [CATTN_ARGUMENT_KEY_START] = {CATTN_INTEGERS("key_start", CATTN_ROWS)},
    [CATTN_ARGUMENT_KEY_STOP] = {CATTN_INTEGERS("key_stop", CATTN_ROWS)},
    [CATTN_ARGUMENT_MASK] = {
        CATTN_OPTIONAL("mask", "CATTN_BOOL; what is added to the scores is a bias", CATTN_SCORES)},
    [CATTN_ARGUMENT_BIAS] = {
        CATTN_OPTIONAL("bias", CATTN_FLOATS_EXPECTED "; what may be attended to is a mask", CATTN_SCORES)},
    [CATTN_ARGUMENT_ALIBI_SLOPES] = {
        CATTN_OPTIONAL("alibi_slopes", CATTN_FLOATS_EXPECTED, "shape (Hq,), or one that ends in Hq and broadcasts to "
                                                              "(..., Hq)")},
    [CATTN_ARGUMENT_SINKS] = {
        CATTN_OPTIONAL("sinks", CATTN_FLOATS_EXPECTED, "shape (Hq,)"),
        [CATTN_WRONG_VALUE] = "sinks: expected finite numbers, or -infinity for none"},
};

static const char *cattn_status_message(int status)
{
    const size_t argument = (size_t)CATTN_ARGUMENT_OF(status), reason = (size_t)CATTN_REASON_OF(status);
    const char *message = NULL;
    switch (status) {
    case CATTN_DONE: return "done";
    case CATTN_STOPPED: return "wants_to_stop said so";
    case CATTN_NO_MEMORY: return "there is no memory for the workspace; fewer threads take less";
    case CATTN_TOO_MANY_TASKS: return "query, key: expected a batch of at most 2^48 tasks";
    case CATTN_NOT_IMPORTED: return "cattn_import() has not been called in this source file";
    }
    if (argument < sizeof cattn_wrong_argument / sizeof *cattn_wrong_argument && reason <= CATTN_IS_UNKNOWN)
        message = cattn_wrong_argument[argument][reason];
    return message == NULL ? "this is not a status of cattn" : message;
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

static void cattn_add_numbers(cattn_text *text, const char *name, const ptrdiff_t *numbers, int count)
{
    cattn_add(text, "%s (", name);
    for (int axis = 0; numbers != NULL && axis < count && axis <= CATTN_AXES; axis++)
        cattn_add(text, axis > 0 ? ", %td" : "%td", numbers[axis]);
    cattn_add(text, count == 1 ? ",)" : ")");
}

/* A wrong shape is wrong beside those of the inputs, as a rule: all of them are named. */
static void cattn_add_shapes(cattn_text *text, const cattn_attention_args *args, const cattn_ndarray *array)
{
    const cattn_ndarray *inputs[] = {&args->query, &args->key, &args->value};
    static const char *const names[] = {"; query has", "; key has", "; value has"};
    if (array->ndim < 0 || array->ndim > CATTN_AXES) {
        cattn_add(text, "; got ndim %d", array->ndim);
        return;
    }
    cattn_add_numbers(text, "; got", array->shape, array->ndim);
    for (int number = 0; number < 3; number++)
        if (inputs[number] != array && inputs[number]->shape != NULL)
            cattn_add_numbers(text, names[number], inputs[number]->shape, inputs[number]->ndim);
}

static ptrdiff_t cattn_length_of(const cattn_ndarray *array)
{
    return array->shape[array->ndim - 2];
}

static void cattn_add_type(cattn_text *text, const cattn_ndarray *array)
{
    static const char *const names[] = {
        [CATTN_FLOAT32] = "CATTN_FLOAT32", [CATTN_FLOAT64] = "CATTN_FLOAT64", [CATTN_FLOAT16] = "CATTN_FLOAT16",
        [CATTN_BFLOAT16] = "CATTN_BFLOAT16", [CATTN_BOOL] = "CATTN_BOOL", [CATTN_INT64] = "CATTN_INT64"};
    if (array->type >= 0 && (size_t)array->type < sizeof names / sizeof *names)
        cattn_add(text, "; got %s", names[array->type]);
    else
        cattn_add(text, "; got %d", array->type);
}

static const int64_t *cattn_integer_at(const cattn_ndarray *array, ptrdiff_t number)
{
    const char *item = array->data;
    ptrdiff_t contiguous = sizeof(int64_t);
    for (int axis = array->ndim - 1; axis >= 0; axis--) {
        item += number % array->shape[axis] * (array->strides == NULL ? contiguous : array->strides[axis]);
        contiguous *= array->shape[axis];
        number /= array->shape[axis];
    }
    return (const int64_t *)item;
}

static void cattn_add_range(cattn_text *text, const cattn_ndarray *array)
{
    ptrdiff_t count = 1;
    int64_t least = INT64_MAX, most = INT64_MIN;
    for (int axis = 0; axis < array->ndim; axis++)
        count *= array->shape[axis];
    for (ptrdiff_t number = 0; number < count; number++) {
        const int64_t value = *cattn_integer_at(array, number);
        least = value < least ? value : least;
        most = value > most ? value : most;
    }
    cattn_add(text, least == most ? "; got %lld" : "; got %lld to %lld", (long long)least, (long long)most);
}

/* A wrong number. The arrays whose numbers are looked at have been checked in all else. */
static void cattn_add_value(cattn_text *text, const cattn_attention_args *args, int argument)
{
    switch (argument) {
    case CATTN_ARGUMENT_ARGS: cattn_add(text, "; got %zu", args->struct_size); break;
    case CATTN_ARGUMENT_FLAGS: cattn_add(text, "; got 0x%x", args->flags); break;
    case CATTN_ARGUMENT_NUM_THREADS: cattn_add(text, "; got %d", args->num_threads); break;
    case CATTN_ARGUMENT_SCALE: cattn_add(text, "; got %g", args->scale); break;
    case CATTN_ARGUMENT_SOFTCAP: cattn_add(text, "; got %g", args->softcap); break;
    case CATTN_ARGUMENT_WINDOW:
        cattn_add(text, "; got %lld, %lld", (long long)args->window_left, (long long)args->window_right);
        break;
    case CATTN_ARGUMENT_QUERY_OFFSET: cattn_add_range(text, &args->query_offset); break;
    case CATTN_ARGUMENT_QUERY_LENGTHS: cattn_add_range(text, &args->query_lengths); break;
    case CATTN_ARGUMENT_KEY_LENGTHS: cattn_add_range(text, &args->key_lengths); break;
    }
}

static size_t cattn_explain_status(const cattn_attention_args *args, int status, char *memory, size_t size)
{
    const int argument = CATTN_ARGUMENT_OF(status), reason = CATTN_REASON_OF(status);
    const cattn_ndarray *arrays[] = {
        [CATTN_ARGUMENT_QUERY] = &args->query, [CATTN_ARGUMENT_KEY] = &args->key,
        [CATTN_ARGUMENT_VALUE] = &args->value, [CATTN_ARGUMENT_OUT] = &args->out, [CATTN_ARGUMENT_LSE] = &args->lse,
        [CATTN_ARGUMENT_QUERY_OFFSET] = &args->query_offset, [CATTN_ARGUMENT_QUERY_LENGTHS] = &args->query_lengths,
        [CATTN_ARGUMENT_KEY_LENGTHS] = &args->key_lengths, [CATTN_ARGUMENT_KEY_START] = &args->key_start,
        [CATTN_ARGUMENT_KEY_STOP] = &args->key_stop, [CATTN_ARGUMENT_MASK] = &args->mask,
        [CATTN_ARGUMENT_BIAS] = &args->bias, [CATTN_ARGUMENT_ALIBI_SLOPES] = &args->alibi_slopes,
        [CATTN_ARGUMENT_SINKS] = &args->sinks};
    cattn_text text = {memory, size, 0};
    cattn_add(&text, "%s", cattn_status_message(status));
    if (args == NULL || argument < CATTN_ARGUMENT_ARGS || argument > CATTN_ARGUMENT_SINKS)
        return text.length;
    if (reason == CATTN_WRONG_VALUE)
        cattn_add_value(&text, args, argument);
    else if (reason == CATTN_WRONG_SHAPE)
        cattn_add_shapes(&text, args, arrays[argument]);
    else if (reason == CATTN_WRONG_TYPE)
        cattn_add_type(&text, arrays[argument]);
    else if (reason == CATTN_IS_MISSING && argument == CATTN_ARGUMENT_QUERY_OFFSET)
        cattn_add(&text, "; got %td and %td", cattn_length_of(&args->query), cattn_length_of(&args->key));
    return text.length;
}

#endif
