// AVX-512 with bfloat16, whose numbers are multiplied in float32: Cooper Lake, Sapphire Rapids and
// their like start a dot product of bfloat16 pairs every second cycle, and two multiply-adds of
// float32 every cycle, which are twice as many products.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi2")
#define AD_AVX512
#define AD_AVX512_BF16
#define AD_NAME "avx512-bf16"
#define AD_SYMBOL ad_avx512_bf16
#define AD_VECTOR_BYTES 64
#include "kernels.h"
#endif
