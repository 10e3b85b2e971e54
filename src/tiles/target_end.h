/* Closes what target_begin.h opened. */
#if defined(TILES_TARGET) && defined(__clang__)
#pragma clang attribute pop
#elif defined(TILES_TARGET) || defined(TILES_NEON) && !defined(__clang__)
#pragma GCC pop_options
#endif
