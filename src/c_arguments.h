/* The arguments of a call from C, with a row for each. c_api.pxd checks a call by these rows, and c_messages.h explains
 * it by them. A new argument gets a number and a field in cattn.h, a row here, and, if it is an array, a field in
 * problem.h. */
#ifndef CATTN_C_ARGUMENTS_H
#define CATTN_C_ARGUMENTS_H

#include "problem.h"

#define CATTN_AXES 64

/* A struct that ends before this was never published, and one beyond has no size that anyone set. */
#define CATTN_LEAST_ARGS offsetof(cattn_attention_args, lse)
#define CATTN_MOST_ARGS 65536

#define CATTN_KNOWN_FLAGS \
    (CATTN_CAUSAL | CATTN_HAS_SCALE | CATTN_HAS_WINDOW | CATTN_OFFSET_START | CATTN_OFFSET_END)

/* Positions beyond this are as good as infinite, and sums of a few of them still fit an int64. */
#define CATTN_FAR ((int64_t)1 << 60)

/* What the struct holds at an argument's place. */
enum { CATTN_KIND_SIZE = 1, CATTN_KIND_FLAGS, CATTN_KIND_INT, CATTN_KIND_DOUBLE, CATTN_KIND_PAIR, CATTN_KIND_ARRAY };

/* Which axes of an array may be missing, or have size 1 where others have more. */
enum { CATTN_BROADCAST_NONE, CATTN_BROADCAST_BATCH, CATTN_BROADCAST_ALL };

/* Which numbers an array may hold: any; positions, from -2^60 to 2^60; lengths, from 0 to a size of the problem; or
 * logits, which are finite or -infinity. */
enum { CATTN_NUMBERS_ANY, CATTN_NUMBERS_POSITIONS, CATTN_NUMBERS_LENGTHS, CATTN_NUMBERS_LOGITS };

/* Sets of types: a bit for each cattn_type. */
enum {
    CATTN_F32 = 1 << CATTN_FLOAT32,
    CATTN_F64 = 1 << CATTN_FLOAT64,
    CATTN_F16 = 1 << CATTN_FLOAT16,
    CATTN_BF16 = 1 << CATTN_BFLOAT16,
    CATTN_ANY_FLOAT = (1 << CATTN_FLOATS) - 1,
    CATTN_BOOLS = 1 << CATTN_BOOL,
    CATTN_INTEGERS = 1 << CATTN_INT64,
    CATTN_BYTES = 1 << CATTN_INT8
};

/* The sizes of axes, as cattn.h calls them: where cattn_problem holds each. None of them is its first field. */
enum {
    CATTN_HQ = offsetof(cattn_problem, query_heads),
    CATTN_HKV = offsetof(cattn_problem, key_heads),
    CATTN_LQ = offsetof(cattn_problem, query_length),
    CATTN_LK = offsetof(cattn_problem, key_length),
    CATTN_D = offsetof(cattn_problem, head_size),
    CATTN_DV = offsetof(cattn_problem, value_size)
};

typedef struct {
    int kind;                              /* a CATTN_KIND_... */
    size_t given;                          /* where it lies in cattn_attention_args */
    const char *messages[CATTN_IS_UNKNOWN + 1];   /* by reason; NULL if it is never refused for this reason */

    /* Only arrays have the fields that follow. */
    const char *name;
    size_t placed;                         /* where it lies in cattn_problem */
    int is_required;
    int is_input;                          /* its axes decide the sizes of the problem */
    int is_result;                         /* it is written, and may overlap no other array */
    int is_copied;                         /* the problem holds it as float64 */
    int is_scale;                          /* it varies along the keys or along the columns, and int8 needs it */
    int is_aligned;
    unsigned types;                        /* the set of types that it may have */
    int beside;                            /* the number of the array on whose type its own type depends, or 0 */
    unsigned types_beside[CATTN_TYPES];    /* the set of types that it may have, for each type of that array */
    size_t axes[3];                        /* the sizes of head, row and column; 0 for an axis that it does not have */
    int broadcast;                         /* a CATTN_BROADCAST_... */
    int has_no_batch;                      /* all entries of the batch share it */
    int numbers;                           /* a CATTN_NUMBERS_... */
    size_t limit;                          /* the size that no length exceeds */
} cattn_argument;

/* What cattn_message says if the argument is refused for this reason. */
#define CATTN_SAYS(reason, message) .messages[CATTN_##reason] = message

#define CATTN_NUMBER(field, its_kind) .kind = CATTN_KIND_##its_kind, .given = offsetof(cattn_attention_args, field)

#define CATTN_ARRAY(field, its_types, type, shape) \
    .kind = CATTN_KIND_ARRAY, .given = offsetof(cattn_attention_args, field), \
    .name = #field, .placed = offsetof(cattn_problem, field), .types = its_types, \
    CATTN_SAYS(WRONG_TYPE, #field ": expected type " type), \
    CATTN_SAYS(WRONG_SHAPE, #field ": expected " shape ", of 64 axes at most, each of 0 or more elements")

#define CATTN_REQUIRED(field, its_types, type, shape) \
    CATTN_ARRAY(field, its_types, type, shape), .is_required = 1, \
    CATTN_SAYS(IS_NULL, #field ": expected data and a shape, got NULL")

#define CATTN_INPUT(field, its_types, type, shape) \
    CATTN_REQUIRED(field, its_types, type, shape), .is_input = 1, .broadcast = CATTN_BROADCAST_BATCH

#define CATTN_OPTIONAL(field, its_types, type, shape) \
    CATTN_ARRAY(field, its_types, type, shape), \
    CATTN_SAYS(IS_NULL, #field ": expected a shape beside the data, got NULL")

#define CATTN_INT64S(field, shape) \
    CATTN_OPTIONAL(field, CATTN_INTEGERS, "CATTN_INT64", shape), .is_aligned = 1, .broadcast = CATTN_BROADCAST_ALL, \
    CATTN_SAYS(MISALIGNED, #field ": expected data and strides that are multiples of 8 bytes")

#define CATTN_IS_RESULT(field) \
    .is_result = 1, \
    CATTN_SAYS(OVERLAPS, #field ": expected memory of its own, got an array that overlaps itself or another argument")

/* The types that an array may have beside each type of another one. */
#define CATTN_BESIDE(argument, float32, float64, float16, bfloat16) \
    .beside = CATTN_ARGUMENT_##argument, .types_beside = {float32, float64, float16, bfloat16}

/* The scale of int8 keys or values. */
#define CATTN_SCALE_OF(argument, field) \
    CATTN_OPTIONAL(field##_scale, CATTN_ANY_FLOAT, \
                   CATTN_FLOATS_EXPECTED " beside " #field " of CATTN_INT8, and no data beside other types", \
                   "a shape that broadcasts to that of " #field ", with size 1 along the keys or along the last axis"), \
    .beside = CATTN_ARGUMENT_##argument, .types_beside = {[CATTN_INT8] = CATTN_ANY_FLOAT}, .is_scale = 1, \
    .broadcast = CATTN_BROADCAST_ALL, \
    CATTN_SAYS(IS_MISSING, #field "_scale: expected an array beside " #field " of CATTN_INT8, got NULL")

#define CATTN_FLOATS_EXPECTED "CATTN_FLOAT32, CATTN_FLOAT64, CATTN_FLOAT16 or CATTN_BFLOAT16"
#define CATTN_ENTRIES "a shape that broadcasts to the leading axes of query, key and value, or 0 axes"
#define CATTN_ROWS "a shape that broadcasts to (..., Hq, Lq)"
#define CATTN_SCORES "a shape that broadcasts to (..., Hq, Lq, Lk)"

static const cattn_argument cattn_arguments[] = {
    [CATTN_ARGUMENT_ARGS] = {
        CATTN_NUMBER(struct_size, SIZE),
        CATTN_SAYS(IS_NULL, "args: expected a cattn_attention_args, got NULL"),
        CATTN_SAYS(WRONG_VALUE, "struct_size: expected sizeof(cattn_attention_args); call cattn_attention_defaults()"),
        CATTN_SAYS(IS_UNKNOWN, "args: this version of cattn does not know all fields that are given; update cattn")},
    [CATTN_ARGUMENT_FLAGS] = {
        CATTN_NUMBER(flags, FLAGS),
        CATTN_SAYS(WRONG_VALUE, "flags: expected one of CATTN_OFFSET_START, CATTN_OFFSET_END and query_offset at most"),
        CATTN_SAYS(IS_UNKNOWN, "flags: this version of cattn does not know all that are given; update cattn")},
    [CATTN_ARGUMENT_NUM_THREADS] = {
        CATTN_NUMBER(num_threads, INT),
        CATTN_SAYS(WRONG_VALUE, "num_threads: expected 1 or more, or 0 for the calling thread alone")},
    [CATTN_ARGUMENT_SCALE] = {
        CATTN_NUMBER(scale, DOUBLE),
        CATTN_SAYS(WRONG_VALUE,
                   "scale: expected 0, or a finite number that the type computed in holds in full precision"),
        CATTN_SAYS(IS_MISSING, "scale: expected CATTN_HAS_SCALE among the flags beside a scale")},
    [CATTN_ARGUMENT_SOFTCAP] = {
        CATTN_NUMBER(softcap, DOUBLE),
        CATTN_SAYS(WRONG_VALUE, "softcap: expected a finite number above 0, or 0 for none")},
    [CATTN_ARGUMENT_WINDOW] = {
        CATTN_NUMBER(window_left, PAIR),
        CATTN_SAYS(WRONG_VALUE, "window_left, window_right: expected 0 or more, or -1 for no limit on that side"),
        CATTN_SAYS(IS_MISSING, "window_left, window_right: expected CATTN_HAS_WINDOW among the flags beside a window")},
    [CATTN_ARGUMENT_QUERY] = {
        CATTN_INPUT(query, CATTN_ANY_FLOAT, CATTN_FLOATS_EXPECTED,
                    "shape (..., Hq, Lq, D) or (Lq, D), with D from 1 to 16384"),
        .axes = {CATTN_HQ, CATTN_LQ, CATTN_D}},
    [CATTN_ARGUMENT_KEY] = {
        CATTN_INPUT(key, CATTN_ANY_FLOAT | CATTN_BYTES,
                    "of query, or CATTN_FLOAT16 or CATTN_BFLOAT16 beside CATTN_FLOAT32, or CATTN_INT8 unless query is "
                    "CATTN_FLOAT64",
                    "shape (..., Hkv, Lk, D) or (Lk, D) like query, with its D, an Hkv that divides its Hq, and "
                    "leading axes that broadcast"),
        CATTN_BESIDE(QUERY, CATTN_F32 | CATTN_F16 | CATTN_BF16 | CATTN_BYTES, CATTN_F64, CATTN_F16 | CATTN_BYTES,
                     CATTN_BF16 | CATTN_BYTES),
        .axes = {CATTN_HKV, CATTN_LK, CATTN_D}},
    [CATTN_ARGUMENT_VALUE] = {
        CATTN_INPUT(value, CATTN_ANY_FLOAT | CATTN_BYTES, "of key",
                    "shape (..., Hkv, Lk, Dv) or (Lk, Dv) like key, with its Hkv and Lk, and leading axes that "
                    "broadcast"),
        .beside = CATTN_ARGUMENT_KEY,
        .types_beside = {CATTN_F32, CATTN_F64, CATTN_F16, CATTN_BF16, [CATTN_INT8] = CATTN_BYTES},
        .axes = {CATTN_HKV, CATTN_LK, CATTN_DV}},
    [CATTN_ARGUMENT_OUT] = {
        CATTN_REQUIRED(out, CATTN_ANY_FLOAT, "of query, or CATTN_FLOAT32 beside CATTN_FLOAT16 and CATTN_BFLOAT16",
                       "shape (..., Hq, Lq, Dv) or (Lq, Dv) like query, with the leading axes of all inputs, "
                       "broadcast"),
        CATTN_IS_RESULT(out),
        CATTN_BESIDE(QUERY, CATTN_F32, CATTN_F64, CATTN_F16 | CATTN_F32, CATTN_BF16 | CATTN_F32),
        .axes = {CATTN_HQ, CATTN_LQ, CATTN_DV}},
    [CATTN_ARGUMENT_LSE] = {
        CATTN_OPTIONAL(lse, CATTN_ANY_FLOAT, "CATTN_FLOAT64 beside query of CATTN_FLOAT64, else CATTN_FLOAT32",
                       "the shape of out but for its last axis"),
        CATTN_IS_RESULT(lse),
        CATTN_BESIDE(QUERY, CATTN_F32, CATTN_F64, CATTN_F32, CATTN_F32),
        .axes = {CATTN_HQ, CATTN_LQ}, .is_aligned = 1,
        CATTN_SAYS(MISALIGNED, "lse: expected data and strides that are multiples of an element's bytes")},
    [CATTN_ARGUMENT_QUERY_OFFSET] = {
        CATTN_INT64S(query_offset, CATTN_ENTRIES), .numbers = CATTN_NUMBERS_POSITIONS,
        CATTN_SAYS(WRONG_VALUE, "query_offset: expected integers from -2^60 to 2^60"),
        CATTN_SAYS(IS_MISSING, "query_offset: expected CATTN_OFFSET_START (row 0 of the queries stands at key 0) or "
                               "CATTN_OFFSET_END (the last row stands at the last key; a cache of keys wants it) among "
                               "the flags, or query_offset, because CATTN_CAUSAL, a window or alibi_slopes is given "
                               "and the lengths of query and key differ")},
    [CATTN_ARGUMENT_QUERY_LENGTHS] = {
        CATTN_INT64S(query_lengths, CATTN_ENTRIES), .numbers = CATTN_NUMBERS_LENGTHS, .limit = CATTN_LQ,
        CATTN_SAYS(WRONG_VALUE, "query_lengths: expected integers from 0 to Lq, the length of query")},
    [CATTN_ARGUMENT_KEY_LENGTHS] = {
        CATTN_INT64S(key_lengths, CATTN_ENTRIES), .numbers = CATTN_NUMBERS_LENGTHS, .limit = CATTN_LK,
        CATTN_SAYS(WRONG_VALUE, "key_lengths: expected integers from 0 to Lk, the length of key")},
    [CATTN_ARGUMENT_KEY_START] = {CATTN_INT64S(key_start, CATTN_ROWS), .axes = {CATTN_HQ, CATTN_LQ}},
    [CATTN_ARGUMENT_KEY_STOP] = {CATTN_INT64S(key_stop, CATTN_ROWS), .axes = {CATTN_HQ, CATTN_LQ}},
    [CATTN_ARGUMENT_MASK] = {
        CATTN_OPTIONAL(mask, CATTN_BOOLS, "CATTN_BOOL; what is added to the scores is a bias", CATTN_SCORES),
        .axes = {CATTN_HQ, CATTN_LQ, CATTN_LK}, .broadcast = CATTN_BROADCAST_ALL},
    [CATTN_ARGUMENT_BIAS] = {
        CATTN_OPTIONAL(bias, CATTN_ANY_FLOAT, CATTN_FLOATS_EXPECTED "; what may be attended to is a mask",
                       CATTN_SCORES),
        .axes = {CATTN_HQ, CATTN_LQ, CATTN_LK}, .broadcast = CATTN_BROADCAST_ALL},
    [CATTN_ARGUMENT_ALIBI_SLOPES] = {
        CATTN_OPTIONAL(alibi_slopes, CATTN_ANY_FLOAT, CATTN_FLOATS_EXPECTED,
                       "shape (Hq,), or one that ends in Hq and broadcasts to (..., Hq)"),
        .axes = {CATTN_HQ}, .broadcast = CATTN_BROADCAST_BATCH, .is_copied = 1},
    [CATTN_ARGUMENT_SINKS] = {
        CATTN_OPTIONAL(sinks, CATTN_ANY_FLOAT, CATTN_FLOATS_EXPECTED, "shape (Hq,)"),
        .axes = {CATTN_HQ}, .has_no_batch = 1, .is_copied = 1, .numbers = CATTN_NUMBERS_LOGITS,
        CATTN_SAYS(WRONG_VALUE, "sinks: expected finite numbers, or -infinity for none")},
    [CATTN_ARGUMENT_KEY_SCALE] = {CATTN_SCALE_OF(KEY, key), .axes = {CATTN_HKV, CATTN_LK, CATTN_D}},
    [CATTN_ARGUMENT_VALUE_SCALE] = {CATTN_SCALE_OF(VALUE, value), .axes = {CATTN_HKV, CATTN_LK, CATTN_DV}},
};

enum { CATTN_ARGUMENTS = sizeof cattn_arguments / sizeof *cattn_arguments };

/* Return the place of the argument of this number in the struct. */
static inline void *cattn_given(const cattn_attention_args *args, int number)
{
    return (char *)args + cattn_arguments[number].given;
}

#endif
