/* Few rows find keys and values a stride apart, or, if these are `listed`, at the addresses in the block's list. Kernels
 * for listed keys are functions of their own, so that the others pay nothing for it. */
#ifndef TILES_FEW_STREAMS
#define TILES_FEW_STREAMS
/* Where some keys lie, or a part of the columns of their values. */
typedef struct {
    const char *data;            /* where the first one lies */
    ptrdiff_t stride;            /* bytes from one to the next */
    const char *const *list;     /* if they are listed: the address of each */
    ptrdiff_t offset;            /* what is added to these addresses */
} few_keys;

/* One key from each stream, and the keys to ask for meanwhile. Both are pointers, or, if keys are not listed, bytes from
 * the first key. Which of these needs fewer registers depends on what else a loop holds in them. */
typedef struct {
    const char *row[16], *next[16];
    const char *first;
    ptrdiff_t apart, ahead;
} few_streams;

/* Returns `keys` from key j on. */
INLINE few_keys few_keys_from(few_keys keys, ptrdiff_t j, const int listed)
{
    if (listed)
        keys.list += j;
    else
        keys.data += j * keys.stride;
    return keys;
}

/* Takes the first key of each of `wide` streams, which lie `apart` keys from one another. What is asked for lies `ahead`
 * bytes from there, or keys if they are listed. */
INLINE few_streams few_streams_of(few_keys keys, ptrdiff_t apart, ptrdiff_t ahead, const int wide, const int listed)
{
    few_streams streams = {.first = keys.data, .apart = apart * keys.stride, .ahead = ahead};
    UNROLL for (int w = 0; w < wide; w++) {
        streams.row[w] = listed ? keys.list[w * apart] + keys.offset : keys.data + w * streams.apart;
        streams.next[w] = listed ? keys.list[w * apart + ahead] + keys.offset : streams.row[w] + ahead;
    }
    return streams;
}

/* Returns the key of a stream. */
INLINE const char *few_row(const few_streams *streams, const int w, const int pointers)
{
    return pointers ? streams->row[w] : streams->first + w * streams->apart;
}

/* Returns the key of a stream to ask for. */
INLINE const char *few_next_row(const few_streams *streams, const int w, const int pointers)
{
    return pointers ? streams->next[w] : streams->first + w * streams->apart + streams->ahead;
}
#endif
