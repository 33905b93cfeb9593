// The base's linear modules: out[row] = x[row] · weightᵀ + bias, over a weight packed once.
//
// A packed weight lies in panels of PANEL outputs; within a panel, inputs one after another (in
// pairs for bfloat16, as its dot product reads them), so that a panel is read front to back. A tile
// of rows × PANEL outputs stays in registers over the whole of `in`: each output is one sum in one
// order, whatever rows share the call and however many threads run it, so a row's result never
// depends on its batch. Included inside a namespace, after vec.h.

#ifdef AD_AVX512
static constexpr int GEMM_ROWS = 8;  // 8 × 3 sums, 3 weights, 1 input: 28 of 32 registers
#else
static constexpr int GEMM_ROWS = AD_VECTOR_BYTES == 32 ? 4 : 2;
#endif
static constexpr int GEMM_VECTORS = 3;
static constexpr int PANEL = GEMM_VECTORS * VL;
static constexpr int64_t ROW_BLOCK = 128;  // rows of a task, so that many threads share few panels

AD_INLINE int64_t panels_of(int64_t out) { return (out + PANEL - 1) / PANEL; }

// Numbers of one panel: bfloat16 inputs come in pairs.
AD_INLINE int64_t panel_size(const float *, int64_t in) { return in * PANEL; }
AD_INLINE int64_t panel_size(const bf16 *, int64_t in) { return (in + 1) / 2 * 2 * PANEL; }

AD_INLINE int64_t place_in_panel(const float *, int64_t k, int64_t n) { return k * PANEL + n; }
AD_INLINE int64_t place_in_panel(const bf16 *, int64_t k, int64_t n) {
    return k / 2 * 2 * PANEL + 2 * n + k % 2;
}

template <typename T>
static void pack_of(const T *weight, T *packed, int64_t out, int64_t in) {
    const T *tag = nullptr;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels_of(out); p++) {
        T *panel = packed + p * panel_size(tag, in);
        memset(panel, 0, (size_t)panel_size(tag, in) * sizeof(T));
        for (int64_t n = 0; n < PANEL && p * PANEL + n < out; n++)
            for (int64_t k = 0; k < in; k++)
                panel[place_in_panel(tag, k, n)] = weight[(p * PANEL + n) * in + k];
    }
}

// What is asked for while a tile is computed: its part of the panel that comes next. Where few rows
// share a panel, waiting for memory would cost as much as computing.
struct Ahead {
    const char *from;
    int64_t step;  // bytes for each vector of a panel's row
};

AD_INLINE void ask(const Ahead &ahead, int64_t row) {
#pragma GCC unroll 4
    for (int v = 0; v < GEMM_VECTORS; v++)
        __builtin_prefetch(ahead.from + (row * GEMM_VECTORS + v) * ahead.step, 0, 2);
}

// acc[row][vector] += x[row][k …] · panel[k …], for inputs [0, in).
template <int ROWS>
AD_INLINE void multiply(const float *x, int64_t stride, const float *panel, int64_t in,
                        const Ahead &ahead, vf (&acc)[ROWS][GEMM_VECTORS]) {
    for (int64_t k = 0; k < in; k++) {
        ask(ahead, k);
        vf w[GEMM_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) w[v] = load(panel + k * PANEL + v * VL);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GEMM_VECTORS; v++) acc[i][v] += x[i * stride + k] * w[v];
    }
}

template <int ROWS>
AD_INLINE void multiply(const bf16 *x, int64_t stride, const bf16 *panel, int64_t in,
                        const Ahead &ahead, vf (&acc)[ROWS][GEMM_VECTORS]) {
    const auto pair = [&](const bf16 *at, uint32_t (&xs)[ROWS], bool both) AD_LAMBDA {
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            xs[i] = 0;
            __builtin_memcpy(&xs[i], at + i * stride, both ? 4 : 2);
        }
    };
    const auto add = [&](int64_t k, const uint32_t (&xs)[ROWS]) AD_LAMBDA {
        const bf16 *w = panel + k * PANEL;
        ask(ahead, k / 2);
#ifdef AD_AVX512_BF16
        __m512bh ws[GEMM_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++)
            ws[v] = (__m512bh)_mm512_loadu_si512(w + v * 2 * VL);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const __m512bh both = (__m512bh)_mm512_set1_epi32((int)xs[i]);
#pragma GCC unroll 4
            for (int v = 0; v < GEMM_VECTORS; v++)
                acc[i][v] = (vf)_mm512_dpbf16_ps((__m512)acc[i][v], both, ws[v]);
        }
#else
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) {
            vu pairs;
            __builtin_memcpy(&pairs, w + v * 2 * VL, sizeof pairs);
            const vf first = (vf)(pairs << 16), second = (vf)(pairs & 0xffff0000u);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                acc[i][v] += to_float(bf16{(uint16_t)xs[i]}) * first;
                acc[i][v] += to_float(bf16{(uint16_t)(xs[i] >> 16)}) * second;
            }
        }
#endif
    };
    uint32_t xs[ROWS];
    int64_t k = 0;
    for (; k + 2 <= in; k += 2) {
        pair(x + k, xs, true);
        add(k, xs);
    }
    if (k < in) {
        pair(x + k, xs, false);
        add(k, xs);
    }
}

template <typename T, int ROWS>
AD_INLINE void gemm_tile(const T *x, int64_t x_stride, const T *panel, int64_t in,
                         const Ahead &ahead, const float *bias, T *out, int64_t out_stride,
                         int64_t columns) {
    vf acc[ROWS][GEMM_VECTORS] = {};
    multiply<ROWS>(x, x_stride, panel, in, ahead, acc);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) {
            vf sums = acc[i][v];
            if (bias) sums += load(bias + v * VL);
            T *to = out + i * out_stride + v * VL;
            if ((v + 1) * VL <= columns)
                store(to, sums);
            else
                for (int64_t n = 0; n < columns - v * VL; n++) store1(to + n, sums[n]);
        }
}

template <typename T>
static void gemm_rows(const T *x, int64_t x_stride, const T *panel, int64_t in, const float *bias,
                      T *out, int64_t out_stride, int64_t columns, int64_t rows) {
    const int64_t tiles = (rows + GEMM_ROWS - 1) / GEMM_ROWS, bytes = VL * 4 / tiles;
    const int64_t size = panel_size(x, in) * (int64_t)sizeof(T);
    for (int64_t r = 0; r < rows; r += GEMM_ROWS) {
        const T *from = x + r * x_stride;
        T *to = out + r * out_stride;
        const Ahead ahead = {(const char *)panel + size + r / GEMM_ROWS * (size / tiles), bytes};
#define AD_TILE(R) \
    case R: gemm_tile<T, R>(from, x_stride, panel, in, ahead, bias, to, out_stride, columns); break;
        switch (rows - r < GEMM_ROWS ? rows - r : GEMM_ROWS) {
            AD_TILE(1)
            AD_TILE(2)
#if AD_VECTOR_BYTES >= 32
            AD_TILE(3)
            AD_TILE(4)
#endif
#ifdef AD_AVX512
            AD_TILE(5)
            AD_TILE(6)
            AD_TILE(7)
            AD_TILE(8)
#endif
        }
#undef AD_TILE
    }
}

template <typename T>
static void linear_of(const ad_linear *l, const T *x, int64_t x_stride, T *out, int64_t out_stride,
                      int64_t rows) {
    const T *packed = (const T *)l->packed;
    const int64_t panels = panels_of(l->out), size = panel_size(packed, l->in);
    const int64_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    const auto task = [&](int64_t p, int64_t first) {
        const int64_t left = l->out - p * PANEL, columns = left < PANEL ? left : PANEL;
        gemm_rows<T>(x + first * x_stride, x_stride, packed + p * size, l->in,
                     l->bias ? l->bias + p * PANEL : nullptr, out + first * out_stride + p * PANEL,
                     out_stride, columns, rows - first < ROW_BLOCK ? rows - first : ROW_BLOCK);
    };
    if (blocks == 1) {
        // A thread's panels follow each other, so that each is in its cache when its turn comes.
#pragma omp parallel for schedule(static)
        for (int64_t p = 0; p < panels; p++) task(p, 0);
    } else {
#pragma omp parallel for schedule(dynamic, 1)
        for (int64_t i = 0; i < panels * blocks; i++) task(i / blocks, i % blocks * ROW_BLOCK);
    }
}

static int64_t packed_numbers(int32_t dtype, int64_t out, int64_t in) {
    return panels_of(out) * (dtype == AD_BFLOAT16 ? panel_size((const bf16 *)nullptr, in)
                                                  : panel_size((const float *)nullptr, in));
}

static void pack(int32_t dtype, const void *weight, void *packed, int64_t out, int64_t in) {
    if (dtype == AD_BFLOAT16)
        pack_of((const bf16 *)weight, (bf16 *)packed, out, in);
    else
        pack_of((const float *)weight, (float *)packed, out, in);
}

static void linear(const ad_linear *l, const void *x, int64_t x_stride, void *out,
                   int64_t out_stride, int64_t rows) {
    if (l->dtype == AD_BFLOAT16)
        linear_of(l, (const bf16 *)x, x_stride, (bf16 *)out, out_stride, rows);
    else
        linear_of(l, (const float *)x, x_stride, (float *)out, out_stride, rows);
}
