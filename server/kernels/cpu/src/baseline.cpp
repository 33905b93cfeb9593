// What every processor of the architecture has: SSE2, or NEON on 64-bit ARM.
#define AD_NAME "baseline"
#define AD_SYMBOL ad_baseline
#define AD_VECTOR_BYTES 16
#include "kernels.h"
