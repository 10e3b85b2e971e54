/* Closes what target_begin.h opened. */
#if defined(TILES_AVX2) || defined(TILES_AVX512)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
