// Shrink and expand over segments: out[t] += (x[t] · a[slot]ᵀ) · b[slot].
//
// Two passes with a barrier between, each cut into small pieces that threads take as they come:
// one request alone uses every core, and ranks may differ from slot to slot. Decodes are bound by
// reading a and b once; rows of longer segments go in tiles of four, so that weights are read
// from cache and not from memory again. Included inside a namespace, after vec.h.

static constexpr int TILE_ROWS = 4, TILE_RANKS = 4, COLUMNS = 768;

// y[row][rank] = x[row] · a[rank] for ROWS × RANKS of them.
template <typename T, int ROWS, int RANKS>
AD_INLINE void dots(const T *x, int64_t x_stride, const T *a, int64_t in, float *y,
                    int64_t y_stride) {
    vf acc[ROWS][RANKS] = {};
    int64_t k = 0;
#ifdef AD_AVX512_BF16
    if constexpr (sizeof(T) == 2) {
        for (; k + 32 <= in; k += 32) {
            __m512bh xs[ROWS];
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++)
                xs[i] = (__m512bh)_mm512_loadu_si512(x + i * x_stride + k);
#pragma GCC unroll 4
            for (int j = 0; j < RANKS; j++) {
                __m512bh as = (__m512bh)_mm512_loadu_si512(a + j * in + k);
#pragma GCC unroll 4
                for (int i = 0; i < ROWS; i++)
                    acc[i][j] = (vf)_mm512_dpbf16_ps((__m512)acc[i][j], xs[i], as);
            }
        }
    }
#endif
    for (; k + VL <= in; k += VL) {
        vf xs[ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) xs[i] = load(x + i * x_stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) {
            vf as = load(a + j * in + k);
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++) acc[i][j] += xs[i] * as;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) {
            float s = sum(acc[i][j]);
            for (int64_t l = k; l < in; l++)
                s += to_float(x[i * x_stride + l]) * to_float(a[j * in + l]);
            y[i * y_stride + j] = s;
        }
}

template <typename T, int ROWS>
AD_INLINE void shrink_tile(const T *x, int64_t x_stride, const T *a, int64_t in, int64_t ranks,
                           float *y, int64_t y_stride) {
    if (ranks == TILE_RANKS) return dots<T, ROWS, TILE_RANKS>(x, x_stride, a, in, y, y_stride);
    for (int64_t j = 0; j < ranks; j++)
        dots<T, ROWS, 1>(x, x_stride, a + j * in, in, y + j, y_stride);
}

// out[row][0 … VECTORS·VL) += y[row] · b
template <typename T, int ROWS, int VECTORS>
AD_INLINE void axpys(const float *y, int64_t y_stride, int64_t rank, const T *b, int64_t b_stride,
                     T *out, int64_t out_stride) {
    vf acc[ROWS][VECTORS] = {};
    for (int64_t j = 0; j < rank; j++) {
        vf bs[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) bs[v] = load(b + j * b_stride + v * VL);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) {
            float w = y[i * y_stride + j];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) acc[i][v] += w * bs[v];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            T *o = out + i * out_stride + v * VL;
            store(o, load(o) + acc[i][v]);
        }
}

// out[0 … columns) += y · b for one row. Reading b is the whole cost, so it is read in the order in
// which it lies in memory, RANKS rows at a time, and the sums wait in the nearest cache.
template <typename T, int RANKS>
AD_INLINE void stream(const float *y, const T *b, int64_t b_stride, float *sums, int64_t columns) {
    int64_t o = 0;
    for (; o + VL <= columns; o += VL) {
        vf acc = load(sums + o);
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) acc += y[j] * load(b + j * b_stride + o);
        store(sums + o, acc);
    }
    for (; o < columns; o++)
        for (int j = 0; j < RANKS; j++) sums[o] += y[j] * to_float(b[j * b_stride + o]);
}

template <typename T>
AD_INLINE void expand_row(const float *y, int64_t rank, const T *b, int64_t b_stride, T *out,
                          int64_t columns) {
    float sums[COLUMNS];
    for (int64_t o = 0; o < columns; o++) sums[o] = 0;
    int64_t j = 0;
    for (; j + 4 <= rank; j += 4) stream<T, 4>(y + j, b + j * b_stride, b_stride, sums, columns);
    for (; j < rank; j++) stream<T, 1>(y + j, b + j * b_stride, b_stride, sums, columns);
    int64_t o = 0;
    for (; o + VL <= columns; o += VL) store(out + o, load(out + o) + load(sums + o));
    for (; o < columns; o++) store1(out + o, to_float(out[o]) + sums[o]);
}

// out[row][0 … columns) += y[row] · b for TILE_ROWS rows.
template <typename T>
AD_INLINE void expand_tile(const float *y, int64_t y_stride, int64_t rank, const T *b,
                           int64_t b_stride, T *out, int64_t out_stride, int64_t columns) {
    constexpr int R = TILE_ROWS;
    int64_t o = 0;
    for (; o + 4 * VL <= columns; o += 4 * VL)
        axpys<T, R, 4>(y, y_stride, rank, b + o, b_stride, out + o, out_stride);
    for (; o + VL <= columns; o += VL)
        axpys<T, R, 1>(y, y_stride, rank, b + o, b_stride, out + o, out_stride);
    for (; o < columns; o++)
        for (int i = 0; i < R; i++) {
            float s = 0;
            for (int64_t j = 0; j < rank; j++)
                s += y[i * y_stride + j] * to_float(b[j * b_stride + o]);
            T *at = out + i * out_stride + o;
            store1(at, to_float(*at) + s);
        }
}

// Rows that use one slot, at most TILE_ROWS of them.
struct Tile {
    int64_t start, rows, slot;
};

template <typename T>
static void lora_add_of(const ad_lora *p) {
    static thread_local Scratch<Tile> tile_scratch;
    static thread_local Scratch<int64_t> start_scratch;
    static thread_local Scratch<float> shrunk_scratch;
    const int64_t members = p->members;
    int64_t room = 0;
    for (int64_t s = 0; s < p->segments; s++)
        room += (p->segment[s].count + TILE_ROWS - 1) / TILE_ROWS;
    Tile *tiles = tile_scratch.room(room);
    int64_t count = 0, most = 0;  // tiles, and the highest rank of any in any member
    for (int64_t s = 0; s < p->segments; s++) {
        const ad_segment &segment = p->segment[s];
        int64_t rank = 0;
        for (int64_t m = 0; m < members; m++)
            if (p->member[m].ranks[segment.slot] > rank) rank = p->member[m].ranks[segment.slot];
        if (!rank) continue;
        if (rank > most) most = rank;
        for (int64_t at = 0; at < segment.count; at += TILE_ROWS) {
            int64_t rows = segment.count - at < TILE_ROWS ? segment.count - at : TILE_ROWS;
            tiles[count++] = {segment.start + at, rows, segment.slot};
        }
    }
    if (!count) return;
    int64_t *starts = start_scratch.room(members + 1);  // of each member's column chunks
    starts[0] = 0;
    for (int64_t m = 0; m < members; m++)
        starts[m + 1] = starts[m] + (p->member[m].out_features + COLUMNS - 1) / COLUMNS;
    const int64_t rank_chunks = (most + TILE_RANKS - 1) / TILE_RANKS;
    const int64_t y_stride = members * most, column_chunks = starts[members];
    float *ys = shrunk_scratch.room(count * TILE_ROWS * y_stride);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < count * members * rank_chunks; i++) {
            const Tile &tile = tiles[i / (members * rank_chunks)];
            const int64_t m = i / rank_chunks % members, j = i % rank_chunks * TILE_RANKS;
            const ad_lora_member &member = p->member[m];
            const int64_t left = member.ranks[tile.slot] - j;
            if (left <= 0) continue;
            const int64_t ranks = left < TILE_RANKS ? left : TILE_RANKS;
            const T *x = (const T *)p->x + tile.start * p->x_stride;
            const T *a = (const T *)member.a + (tile.slot * p->max_rank + j) * p->in_features;
            float *y = ys + (&tile - tiles) * TILE_ROWS * y_stride + m * most + j;
            const int64_t in = p->in_features, xs = p->x_stride;
            if (tile.rows == TILE_ROWS)
                shrink_tile<T, TILE_ROWS>(x, xs, a, in, ranks, y, y_stride);
            else
                for (int64_t r = 0; r < tile.rows; r++)
                    shrink_tile<T, 1>(x + r * xs, xs, a, in, ranks, y + r * y_stride, y_stride);
        }
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < count * column_chunks; i++) {
            const Tile &tile = tiles[i / column_chunks];
            const int64_t chunk = i % column_chunks;
            int64_t m = 0;
            while (chunk >= starts[m + 1]) m++;
            const ad_lora_member &member = p->member[m];
            const int64_t rank = member.ranks[tile.slot];
            if (!rank) continue;
            const int64_t o = (chunk - starts[m]) * COLUMNS;
            const int64_t left = member.out_features - o;
            const int64_t columns = left < COLUMNS ? left : COLUMNS;
            const int64_t width = member.out_features, stride = member.out_stride;
            const T *b = (const T *)member.b + tile.slot * p->max_rank * width + o;
            T *out = (T *)member.out + tile.start * stride + o;
            const float *y = ys + (&tile - tiles) * TILE_ROWS * y_stride + m * most;
            if (tile.rows == TILE_ROWS)
                expand_tile<T>(y, y_stride, rank, b, width, out, stride, columns);
            else
                for (int64_t r = 0; r < tile.rows; r++)
                    expand_row<T>(y + r * y_stride, rank, b, width, out + r * stride, columns);
        }
    }
}

static void lora_add(const ad_lora *p) {
    if (p->dtype == AD_BFLOAT16)
        lora_add_of<bf16>(p);
    else
        lora_add_of<float>(p);
}

static void lora_hook(const void *context, const void *x, int64_t x_stride, void *out,
                      int64_t out_stride, int64_t) {
    const ad_lora_hook *hook = (const ad_lora_hook *)context;
    if (!hook->step->count) return;
    static constexpr int64_t MOST = 8;  // modules that read one input
    ad_lora_member members[MOST];
    ad_lora job = hook->job;
    if (job.members > MOST) abort();
    const int64_t size = job.dtype == AD_BFLOAT16 ? 2 : 4;
    for (int64_t m = 0; m < job.members; m++) {
        members[m] = job.member[m];
        members[m].out = (char *)out + hook->columns[m] * size;
        members[m].out_stride = out_stride;
    }
    job.segments = hook->step->count, job.segment = hook->step->first;
    job.x = x, job.x_stride = x_stride, job.member = members;
    lora_add(&job);
}
