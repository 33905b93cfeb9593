// Row-wise and element-wise parts of a layer, each in one pass. Roundings fall where transformers'
// eager code has them, so bfloat16 results agree to the bit but for the order of a sum. Included
// inside a namespace, after vec.h.

static constexpr int64_t PARALLEL_ELEMENTS = 1 << 12;  // below it, waking threads costs more

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

// SiLU x / (1 + e^-x), and GELU's tanh form, which is x / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³).
AD_INLINE vf activated(int32_t activation, vf x) {
    const vf u = activation == AD_SILU ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + vexp(-u));
}

// out = round(activation(gate)) · up
template <typename T>
static void gated_of(int32_t activation, const T *gate, const T *up, T *out, int64_t rows,
                     int64_t width, int64_t gate_stride, int64_t up_stride) {
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        const T *g = gate + r * gate_stride, *u = up + r * up_stride;
        T *to = out + r * width;
        const T *tag = nullptr;
        int64_t d = 0;
        for (; d + VL <= width; d += VL)
            store(to + d, rounded(activated(activation, load(g + d)), tag) * load(u + d));
        for (; d < width; d++) {
            const float x = activated(activation, splat(to_float(g[d])))[0];
            store1(to + d, rounded(x, tag) * to_float(u[d]));
        }
    }
}

static void gated(int32_t dtype, int32_t activation, const void *gate, const void *up, void *out,
                  int64_t rows, int64_t width, int64_t gate_stride, int64_t up_stride) {
    if (dtype == AD_BFLOAT16)
        gated_of(activation, (const bf16 *)gate, (const bf16 *)up, (bf16 *)out, rows, width,
                 gate_stride, up_stride);
    else
        gated_of(activation, (const float *)gate, (const float *)up, (float *)out, rows, width,
                 gate_stride, up_stride);
}
