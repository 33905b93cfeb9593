// One instruction set's kernels. The including file names it (AD_NAME, AD_SYMBOL) and the width
// of its vectors (AD_VECTOR_BYTES), and switches the compiler to it before this line. Everything
// below is in an unnamed namespace and without the C++ library, so that no function compiled for
// one instruction set can be linked into another's. What it may use is told by AD_AVX512,
// AD_AVX512_BF16 and AD_BF16_DOTS: g++ does not define the compiler's own macros after a target pragma.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "api.h"

namespace {
#include "vec.h"
#include "scratch.h"

#include "attention_tile.h"
#include "attention.h"
#include "gemm.h"
#include "lora.h"
#include "pointwise.h"

#include "layer.h"
}  // namespace

extern "C" const ad_kernels AD_SYMBOL = {
    AD_NAME, lora_add, paged_attention, kv_write, rms_norm, gated,
    packed_numbers, pack, quantize, linear, PANEL, lora_hook, layer,
};
