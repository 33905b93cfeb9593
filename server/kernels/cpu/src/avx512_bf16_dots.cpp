// AVX-512 with bfloat16, by dot products of pairs: Zen 4 and later, where they do twice as many
// products a cycle as float32's multiply-add.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi2")
#define AD_AVX512
#define AD_AVX512_BF16
#define AD_BF16_DOTS
#define AD_NAME "avx512-bf16-dots"
#define AD_SYMBOL ad_avx512_bf16_dots
#define AD_VECTOR_BYTES 64
#include "kernels.h"
#endif
