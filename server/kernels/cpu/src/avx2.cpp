// AVX2 with FMA: Haswell, Zen and later.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,bmi2")
#define AD_NAME "avx2"
#define AD_SYMBOL ad_avx2
#define AD_VECTOR_BYTES 32
#include "kernels.h"
#endif
