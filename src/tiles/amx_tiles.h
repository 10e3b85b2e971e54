/* The tile registers of AMX. There are eight of them, and each has 16 rows of 64 bytes. amx.c includes this file.
 *
 * A kernel that uses tiles begins with TILES_BEGIN and ends with TILES_END. The configuration belongs to the thread, so
 * a signal handler that computes attention between two kernels would leave none behind. No thread holds tiles while it
 * waits. Tile numbers are constants.
 *
 * With CATTN_EMULATE the tiles are arrays, and sums follow the order of operations in Intel's manual. */
#define TILE_ROWS 16
#define TILE_BYTES 64
#define TILE_PAIRS 16      /* bfloat16 pairs, or float32 numbers, of a row */
#define TILE_NUMBERS 32    /* bfloat16 numbers of a row */

#if defined(TILES_AMX)

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_configuration;

static const tile_configuration whole_tiles = {
    .palette = 1,
    .row_bytes = {TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES},
    .rows = {TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS}};

/* The barriers keep compilers, which do not know that tiles are read from memory, from moving stores past a load. */
#define TILES_BEGIN _tile_loadconfig(&whole_tiles)
#define TILES_END _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride)           \
    do {                                        \
        __asm__ volatile("" : : : "memory");    \
        _tile_loadd(tile, from, stride);        \
    } while (0)
#define TILE_STORE(tile, to, stride)            \
    do {                                        \
        _tile_stored(tile, to, stride);         \
        __asm__ volatile("" : : : "memory");    \
    } while (0)
#define TILE_DOT(sum, a, b) _tile_dpbf16ps(sum, a, b)

#else

typedef struct {
    uint32_t row[TILE_ROWS][TILE_PAIRS];
} emulated_tile;

INLINE void emulate_load(emulated_tile *tile, const void *from, ptrdiff_t stride)
{
    for (int i = 0; i < TILE_ROWS; i++)
        __builtin_memcpy(tile->row[i], (const char *)from + i * stride, TILE_BYTES);
}

INLINE void emulate_store(const emulated_tile *tile, void *to, ptrdiff_t stride)
{
    for (int i = 0; i < TILE_ROWS; i++)
        __builtin_memcpy((char *)to + i * stride, tile->row[i], TILE_BYTES);
}

INLINE float emulate_number(uint32_t bits)
{
    float number;
    __builtin_memcpy(&number, &bits, 4);
    return number;
}

/* sum[i][n] += Σ_k a[i][k] · b[k][n]. The low numbers of the pairs are summed, then the high ones, then both sums are
 * added. */
INLINE void emulate_dot(emulated_tile *sum, const emulated_tile *a, const emulated_tile *b)
{
    for (int i = 0; i < TILE_ROWS; i++)
        for (int n = 0; n < TILE_PAIRS; n++) {
            float low = 0, high = 0, total = emulate_number(sum->row[i][n]);
            for (int k = 0; k < TILE_PAIRS; k++) {
                low += emulate_number(a->row[i][k] << 16) * emulate_number(b->row[k][n] << 16);
                high += emulate_number(a->row[i][k] & 0xffff0000) * emulate_number(b->row[k][n] & 0xffff0000);
            }
            total += low + high;
            __builtin_memcpy(&sum->row[i][n], &total, 4);
        }
}

static __thread emulated_tile tiles[8];

#define TILES_BEGIN ((void)0)
#define TILES_END ((void)0)
#define TILE_ZERO(tile) __builtin_memset(&tiles[tile], 0, sizeof tiles[tile])
#define TILE_LOAD(tile, from, stride) emulate_load(&tiles[tile], from, stride)
#define TILE_STORE(tile, to, stride) emulate_store(&tiles[tile], to, stride)
#define TILE_DOT(sum, a, b) emulate_dot(&tiles[sum], &tiles[a], &tiles[b])

#endif

/* Computes 2^x for x <= 0 in fewer steps than F(exponential). A subnormal result is 0, and NaN stays NaN. */
INLINE void amx_exponential(vector *x, const int n)
{
#if defined(TILES_AMX)
    vector whole[TILE_VECTORS], q[TILE_VECTORS];
    UNROLL for (int i = 0; i < n; i++) {
        const vector f = (vector)_mm512_reduce_ps((__m512)x[i], 0);
        whole[i] = x[i] - f;
        x[i] = f;
    }
    F(polynomial)(q, x, n, F(for_exponential), TERMS(for_exponential));
    UNROLL for (int i = 0; i < n; i++)
        x[i] = (vector)_mm512_scalef_ps((__m512)F(muladd)(q[i], x[i], F(splat)(1)), (__m512)whole[i]);
#else
    F(exponential)(x, n);
#endif
}
