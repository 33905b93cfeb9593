// The base's linear modules: out[row] = x[row] · weightᵀ + bias, over a weight packed once.
//
// A packed weight lies in panels of PANEL outputs; within a panel, inputs one after another (in
// pairs for bfloat16, as its dot product reads them), so that a panel is read front to back. A tile
// of rows × PANEL outputs stays in registers over the whole of `in`: each output is one sum in one
// order, whatever rows share the call and however many threads run it, so a row's result never
// depends on its batch. Included inside a namespace, after vec.h and scratch.h.
//
// A weight is of the inputs' type or int8, one scale for each output. int8 is exact in either type,
// so it becomes that type where it is read, and the sums are scaled once, at the end. Inputs of
// bfloat16 are multiplied as pairs where that is fast (AD_BF16_DOTS), and in float32 elsewhere.

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

// Inputs one after another, in pairs or not: pairs are made where int8 become numbers. As many of
// them in a panel as there would be of the inputs' type.
AD_INLINE int64_t place_in_panel(const int8_t *, int64_t k, int64_t n) { return k * PANEL + n; }

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

// Symmetric: the largest of an output's weights becomes 127 or -127; ties round to even.
template <typename T>
static void quantize_of(const T *weight, int8_t *packed, float *scales, int64_t out, int64_t in) {
    const int64_t size = panel_size(weight, in);
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels_of(out); p++) {
        int8_t *panel = packed + p * size;
        memset(panel, 0, (size_t)size);
        for (int64_t n = 0; n < PANEL && p * PANEL + n < out; n++) {
            const T *row = weight + (p * PANEL + n) * in;
            float largest = 0;
            for (int64_t k = 0; k < in; k++) {
                const float size_of = fabsf(to_float(row[k]));
                if (size_of > largest) largest = size_of;
            }
            const float scale = largest / 127;
            scales[p * PANEL + n] = scale;
            if (scale == 0) continue;
            for (int64_t k = 0; k < in; k++) {
                const long q = lrintf(to_float(row[k]) / scale);
                // Above 127 only where the scale is so small that it lost bits itself.
                panel[place_in_panel(panel, k, n)] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
            }
        }
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
template <int ROWS, typename W>
AD_INLINE void multiply(const float *x, int64_t stride, const W *panel, int64_t in,
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

// How often a tile asks for what comes next.
AD_INLINE int64_t asks(const float *, const float *, int64_t in) { return in; }
AD_INLINE int64_t asks(const float *, const int8_t *, int64_t in) { return in; }
AD_INLINE int64_t asks(const float *, const bf16 *, int64_t in) { return (in + 1) / 2; }
template <typename W>
AD_INLINE int64_t asks(const bf16 *, const W *, int64_t in) { return (in + 1) / 2; }

// Weights of two inputs, the first of them even, as pairs of bfloat16: those of vector v of their
// panel's outputs, whose rows are at `row`.
AD_INLINE vu pairs_at(const bf16 *row, int v) {
    vu pairs;
    __builtin_memcpy(&pairs, row + v * 2 * VL, sizeof pairs);
    return pairs;
}
AD_INLINE vu pairs_at(const int8_t *row, int v) {
    // An int8 leaves the lower half of its float empty.
    return (vu)load(row + v * VL) >> 16 | (vu)load(row + PANEL + v * VL);
}

// The same over pairs of bfloat16, with x in float32: converting a weight costs as much as using it
// in one row, and is done once for all rows of the tile.
template <int ROWS>
AD_INLINE void multiply(const float *x, int64_t stride, const bf16 *panel, int64_t in,
                        const Ahead &ahead, vf (&acc)[ROWS][GEMM_VECTORS]) {
    for (int64_t k = 0; k < in; k += 2) {
        ask(ahead, k / 2);
        vu pairs[GEMM_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) pairs[v] = pairs_at(panel + k * PANEL, v);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GEMM_VECTORS; v++)
                acc[i][v] += x[i * stride + k] * (vf)(pairs[v] << 16);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GEMM_VECTORS; v++)
                acc[i][v] += x[i * stride + k + 1] * (vf)(pairs[v] & 0xffff0000u);
    }
}

#ifdef AD_BF16_DOTS
// By dot products of pairs.
template <int ROWS, typename W>
AD_INLINE void multiply(const bf16 *x, int64_t stride, const W *panel, int64_t in,
                        const Ahead &ahead, vf (&acc)[ROWS][GEMM_VECTORS]) {
    for (int64_t k = 0; k < in; k += 2) {
        ask(ahead, k / 2);
        __m512bh ws[GEMM_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) ws[v] = (__m512bh)pairs_at(panel + k * PANEL, v);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            uint32_t pair = 0;  // the last input of an odd number has no other
            __builtin_memcpy(&pair, x + i * stride + k, k + 1 < in ? 4 : 2);
            const __m512bh both = (__m512bh)_mm512_set1_epi32((int)pair);
#pragma GCC unroll 4
            for (int v = 0; v < GEMM_VECTORS; v++)
                acc[i][v] = (vf)_mm512_dpbf16_ps((__m512)acc[i][v], both, ws[v]);
        }
    }
}
#endif

// A panel of int8 as one of the inputs' type.
AD_INLINE void unpack(const int8_t *panel, float *to, int64_t in) {
    for (int64_t at = 0; at < in * PANEL; at += VL) store(to + at, load(panel + at));
}
AD_INLINE void unpack(const int8_t *panel, bf16 *to, int64_t in) {
    for (int64_t k = 0; k < in; k += 2)
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) {
            const vu pairs = pairs_at(panel + k * PANEL, v);
            __builtin_memcpy(to + k * PANEL + v * 2 * VL, &pairs, sizeof pairs);
        }
}

// What a panel's outputs are scaled by and what is added to them; null: not.
struct Ends {
    const float *scales, *bias;
};

template <int ROWS, typename X, typename W, typename T>
AD_INLINE void gemm_tile(const X *x, int64_t x_stride, const W *panel, int64_t in,
                         const Ahead &ahead, const Ends &ends, T *out, int64_t out_stride,
                         int64_t columns) {
    vf acc[ROWS][GEMM_VECTORS] = {};
    multiply<ROWS>(x, x_stride, panel, in, ahead, acc);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < GEMM_VECTORS; v++) {
            vf sums = acc[i][v];
            if (ends.scales) sums *= load(ends.scales + v * VL);
            if (ends.bias) sums += load(ends.bias + v * VL);
            T *to = out + i * out_stride + v * VL;
            if ((v + 1) * VL <= columns)
                store(to, sums);
            else
                for (int64_t n = 0; n < columns - v * VL; n++) store1(to + n, sums[n]);
        }
}

// `next`: where the panel after this one begins, of `size` bytes.
template <typename X, typename W, typename T>
static void gemm_tiles(const X *x, int64_t x_stride, const W *panel, int64_t in, const char *next,
                       int64_t size, const Ends &ends, T *out, int64_t out_stride, int64_t columns,
                       int64_t rows) {
    const int64_t tiles = (rows + GEMM_ROWS - 1) / GEMM_ROWS;
    const int64_t step = size / (asks(x, panel, in) * GEMM_VECTORS * tiles);
    for (int64_t r = 0; r < rows; r += GEMM_ROWS) {
        const X *from = x + r * x_stride;
        T *to = out + r * out_stride;
        const Ahead ahead = {next + r / GEMM_ROWS * (size / tiles), step};
#define AD_TILE(R) \
    case R: gemm_tile<R>(from, x_stride, panel, in, ahead, ends, to, out_stride, columns); break;
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

template <typename X, typename W, typename T>
static void gemm_rows(const X *x, int64_t x_stride, const W *panel, int64_t in, const Ends &ends,
                      T *out, int64_t out_stride, int64_t columns, int64_t rows) {
    const int64_t size = panel_size(panel, in);
    gemm_tiles(x, x_stride, panel, in, (const char *)(panel + size), size * (int64_t)sizeof(W),
               ends, out, out_stride, columns, rows);
}

// Tiles that share a panel share its conversion: one does it as it reads, several read its result.
template <typename X, typename T>
static void gemm_rows(const X *x, int64_t x_stride, const int8_t *panel, int64_t in,
                      const Ends &ends, T *out, int64_t out_stride, int64_t columns,
                      int64_t rows) {
    static thread_local Scratch<X> scratch;
    const int64_t size = panel_size((const T *)nullptr, in);
    const char *next = (const char *)panel + size;
    if (rows <= GEMM_ROWS) {
        gemm_tiles(x, x_stride, panel, in, next, size, ends, out, out_stride, columns, rows);
    } else {
        X *unpacked = scratch.room(size);
        unpack(panel, unpacked, in);
        gemm_tiles(x, x_stride, unpacked, in, next, size, ends, out, out_stride, columns, rows);
    }
}

// One thread's share of the product; called by all threads of a parallel region.
template <typename X, typename W, typename T>
static void share_of(const W *packed, const ad_linear *l, const X *x, int64_t x_stride, T *out,
                     int64_t out_stride, int64_t rows) {
    const int64_t panels = panels_of(l->out), size = panel_size((const T *)nullptr, l->in);
    const int64_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    const auto task = [&](int64_t p, int64_t first) {
        const int64_t left = l->out - p * PANEL, columns = left < PANEL ? left : PANEL;
        const Ends ends = {l->scales ? l->scales + p * PANEL : nullptr,
                           l->bias ? l->bias + p * PANEL : nullptr};
        gemm_rows(x + first * x_stride, x_stride, packed + p * size, l->in, ends,
                  out + first * out_stride + p * PANEL, out_stride, columns,
                  rows - first < ROW_BLOCK ? rows - first : ROW_BLOCK);
    };
    if (blocks == 1) {
        // A thread's panels follow each other, so that each is in its cache when its turn comes.
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) task(p, 0);
    } else {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < panels * blocks; i++) task(i / blocks, i % blocks * ROW_BLOCK);
    }
}

template <typename X, typename T>
static void linear_share(const ad_linear *l, const X *x, int64_t x_stride, T *out,
                         int64_t out_stride, int64_t rows) {
    if (l->scales)
        share_of((const int8_t *)l->packed, l, x, x_stride, out, out_stride, rows);
    else
        share_of((const T *)l->packed, l, x, x_stride, out, out_stride, rows);
}

static void linear_of(const ad_linear *l, const float *x, int64_t x_stride, float *out,
                      int64_t out_stride, int64_t rows) {
#pragma omp parallel
    linear_share(l, x, x_stride, out, out_stride, rows);
}

static void linear_of(const ad_linear *l, const bf16 *x, int64_t x_stride, bf16 *out,
                      int64_t out_stride, int64_t rows) {
#ifdef AD_BF16_DOTS
#pragma omp parallel
    linear_share(l, x, x_stride, out, out_stride, rows);
#else
    static thread_local Scratch<float> scratch;
    const int64_t in = l->in, stride = in + in % 2;
    float *wide = scratch.room(rows * stride);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const bf16 *from = x + r * x_stride;
            float *to = wide + r * stride;
            int64_t k = 0;
            for (; k + VL <= in; k += VL) store(to + k, load(from + k));
            for (; k < in; k++) to[k] = to_float(from[k]);
            if (k < stride) to[k] = 0;
        }
        linear_share(l, (const float *)wide, stride, out, out_stride, rows);
    }
#endif
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

static void quantize(int32_t dtype, const void *weight, int8_t *packed, float *scales, int64_t out,
                     int64_t in) {
    if (dtype == AD_BFLOAT16)
        quantize_of((const bf16 *)weight, packed, scales, out, in);
    else
        quantize_of((const float *)weight, packed, scales, out, in);
}

static void linear(const ad_linear *l, const void *x, int64_t x_stride, void *out,
                   int64_t out_stride, int64_t rows) {
    if (l->dtype == AD_BFLOAT16)
        linear_of(l, (const bf16 *)x, x_stride, (bf16 *)out, out_stride, rows);
    else
        linear_of(l, (const float *)x, x_stride, (float *)out, out_stride, rows);
}
