// The kernels that this processor can run, the fastest first.
#include "api.h"

extern "C" {
extern const ad_kernels ad_baseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern const ad_kernels ad_avx512_bf16, ad_avx512_bf16_dots, ad_avx512, ad_avx2;
#endif

// The n-th of them, or null when there are no more.
__attribute__((visibility("default"))) const ad_kernels *ad_kernels_at(int n) {
    const ad_kernels *found[5];
    int count = 0;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
        const bool dots = __builtin_cpu_is("amd");
        found[count++] = dots ? &ad_avx512_bf16_dots : &ad_avx512_bf16;
        found[count++] = dots ? &ad_avx512_bf16 : &ad_avx512_bf16_dots;
    }
    if (avx512) found[count++] = &ad_avx512;
    if (avx2) found[count++] = &ad_avx2;
#endif
    found[count++] = &ad_baseline;
    return n >= 0 && n < count ? found[n] : nullptr;
}
}
