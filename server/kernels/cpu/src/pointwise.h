// Row-wise and element-wise parts of a layer, each in one pass. Roundings fall where transformers'
// eager code has them, so bfloat16 results agree to the bit but for the order of a sum. Included
// inside a namespace, after vec.h.

static constexpr int64_t PARALLEL_ELEMENTS = 1 << 15;  // below it, waking threads costs more

// Llama's: weight · round(x / rms). Gemma's (plus_one): round(x / rms · (1 + weight)).
template <typename T>
static void rms_norm_of(const T *x, const T *weight, T *out, int64_t rows, int64_t width, float eps,
                        int plus_one) {
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const T *row = x + r * width;
        T *to = out + r * width;
        vf s0 = {}, s1 = {};
        int64_t d = 0;
        for (; d + 2 * VL <= width; d += 2 * VL) {
            vf a = load(row + d), b = load(row + d + VL);
            s0 += a * a;
            s1 += b * b;
        }
        float squares = sum(s0 + s1);
        for (; d < width; d++) squares += to_float(row[d]) * to_float(row[d]);
        const float scale = 1.0f / sqrtf(squares / (float)width + eps);
        const T *tag = nullptr;
        for (d = 0; d + VL <= width; d += VL) {
            vf h = load(row + d) * scale, w = load(weight + d);
            store(to + d, plus_one ? h * (1.0f + w) : w * rounded(h, tag));
        }
        for (; d < width; d++) {
            float h = to_float(row[d]) * scale, w = to_float(weight[d]);
            store1(to + d, plus_one ? h * (1.0f + w) : w * rounded(h, tag));
        }
    }
}

static void rms_norm(int32_t dtype, const void *x, const void *weight, void *out, int64_t rows,
                     int64_t width, float eps, int32_t plus_one) {
    if (dtype == AD_BFLOAT16)
        rms_norm_of((const bf16 *)x, (const bf16 *)weight, (bf16 *)out, rows, width, eps, plus_one);
    else
        rms_norm_of((const float *)x, (const float *)weight, (float *)out, rows, width, eps,
                    plus_one);
}

// out = round(gate / (1 + e^-gate)) · up
template <typename T>
static void silu_mul_of(const T *gate, const T *up, T *out, int64_t rows, int64_t width,
                        int64_t gate_stride, int64_t up_stride) {
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const T *g = gate + r * gate_stride, *u = up + r * up_stride;
        T *to = out + r * width;
        const T *tag = nullptr;
        int64_t d = 0;
        for (; d + VL <= width; d += VL) {
            vf x = load(g + d);
            store(to + d, rounded(x / (1.0f + vexp(-x)), tag) * load(u + d));
        }
        for (; d < width; d++) {
            float x = to_float(g[d]);
            store1(to + d, rounded(x / (1.0f + expf(-x)), tag) * to_float(u[d]));
        }
    }
}

static void silu_mul(int32_t dtype, const void *gate, const void *up, void *out, int64_t rows,
                     int64_t width, int64_t gate_stride, int64_t up_stride) {
    if (dtype == AD_BFLOAT16)
        silu_mul_of((const bf16 *)gate, (const bf16 *)up, (bf16 *)out, rows, width, gate_stride,
                    up_stride);
    else
        silu_mul_of((const float *)gate, (const float *)up, (float *)out, rows, width, gate_stride,
                    up_stride);
}
