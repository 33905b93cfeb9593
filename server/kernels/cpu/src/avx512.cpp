// AVX-512 without bfloat16: Skylake-X, Ice Lake.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")
#define AD_AVX512
#define AD_NAME "avx512"
#define AD_SYMBOL ad_avx512
#define AD_VECTOR_BYTES 64
#include "kernels.h"
#endif
