// Shrink and expand over segments: out[t] += (x[t] · a[slot]ᵀ) · b[slot].
//
// Rows that share a slot go in tiles, each weight read once for all of its rows. Where there are
// tiles enough for all threads, one thread does all of a tile and threads never wait for each
// other; else a tile is cut into ranks, then columns. Decodes are bound by reading a and b once:
// these are read in the order in which they lie in memory, and asked for ahead. A row's sums are
// added up in one order however rows are cut into tiles, so its result does not depend on who
// shares its slot. Included inside a namespace, after vec.h.

static constexpr int TILE_ROWS = 6;
#ifdef AD_AVX512
static constexpr int TILE_RANKS = 4, TILE_BLOCKS = 2;  // whose sums are held in registers at once
#else
static constexpr int TILE_RANKS = 2, TILE_BLOCKS = 1;
#endif
static constexpr int STREAM = 4;                   // ranks that one pass over a row's sums adds
static constexpr int64_t COLUMNS = 768;            // of a piece, where a tile is cut
static constexpr int64_t THREAD_PRODUCTS = 1 << 15;  // fewer are not worth waking a thread for

// Elements are handled in blocks of two vectors: of float32 the first and the second half, of
// bfloat16 those at even and at odd places, which take one operation each to convert.
static constexpr int BLOCK = 2 * VL;

template <int HALF>
AD_INLINE vf half(const float *p) {
    return load(p + HALF * VL);
}
template <int HALF>
AD_INLINE vf half(const bf16 *p) {
    vu pairs;
    __builtin_memcpy(&pairs, p, sizeof pairs);
    return HALF ? (vf)(pairs & 0xffff0000u) : (vf)(pairs << 16);
}

AD_INLINE void store_halves(float *p, vf first, vf second) {
    store(p, first);
    store(p + VL, second);
}
AD_INLINE void store_halves(bf16 *p, vf even, vf odd) {
#ifdef AD_AVX512_BF16
    static const uint16_t interleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                            21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i parted = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_loadu_si512(interleave), parted));
#else
    const vu pairs = (vu)rounded(even, p) >> 16 | (vu)rounded(odd, p);
    __builtin_memcpy(p, &pairs, sizeof pairs);
#endif
}

// The block at p, of whose elements `left` exist; the others are read as zero.
template <typename T>
AD_INLINE const T *whole(const T *p, int64_t left, T *block) {
    if (left >= BLOCK) return p;
    for (int64_t i = 0; i < BLOCK; i++) block[i] = i < left ? p[i] : T{};
    return block;
}

// DOTS, below: whether products are bfloat16 dot products of pairs (AD_BF16_DOTS).
AD_INLINE vf dot_pairs(vf acc, vf a, vf b) {
#ifdef AD_BF16_DOTS
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    return acc + a * b;
#endif
}

// A row of x as `dots` reads it, zeros up to a whole block; `floats_of` its length in floats.
template <bool DOTS>
AD_INLINE int64_t floats_of(int64_t elements) {
    return round_up(elements, BLOCK) / (DOTS ? 2 : 1);
}
template <typename T, bool DOTS>
static void lay_out(const T *x, int64_t in, float *to) {
    T block[BLOCK] = {};
    for (int64_t k = 0; k < in; k += BLOCK) {
        const T *from = whole(x + k, in - k, block);
        if constexpr (DOTS)
            __builtin_memcpy(to + k / 2, from, BLOCK * sizeof(T));
        else
            store(to + k, half<0>(from)), store(to + k + VL, half<1>(from));
    }
}

template <typename T, bool DOTS, int ROWS, int RANKS>
AD_INLINE void dot_block(const float *x, int64_t apart, const T *a, int64_t a_stride,
                         vf (*acc)[RANKS]) {
    if constexpr (DOTS) {
        vf as[RANKS];
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) as[j] = load((const float *)(a + j * a_stride));
#pragma GCC unroll 6
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < RANKS; j++)
                acc[i][j] = dot_pairs(acc[i][j], load(x + i * apart), as[j]);
    } else {
        vf as[RANKS];
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) as[j] = half<0>(a + j * a_stride);
#pragma GCC unroll 6
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < RANKS; j++) acc[i][j] += load(x + i * apart) * as[j];
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) as[j] = half<1>(a + j * a_stride);
#pragma GCC unroll 6
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < RANKS; j++) acc[i][j] += load(x + i * apart + VL) * as[j];
    }
}

AD_INLINE void ask_block(const void *p, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)p + at, 0, 2);
}

// y[row][rank] = x[row] · a[rank] for ROWS × RANKS of them; `next` is as much of a as is wanted
// after this, or null.
template <typename T, bool DOTS, int ROWS, int RANKS>
AD_INLINE void dots(const float *x, int64_t apart, const T *a, int64_t in, const T *next, float *y,
                    int64_t y_stride) {
    vf acc[ROWS][RANKS] = {};
    int64_t k = 0;
    for (; k + BLOCK <= in; k += BLOCK) {
        if (next)
            for (int j = 0; j < RANKS; j++) ask_block(next + j * in + k, BLOCK * sizeof(T));
        dot_block<T, DOTS, ROWS, RANKS>(x + k / (DOTS ? 2 : 1), apart, a + k, in, acc);
    }
    if (k < in) {
        T tail[RANKS * BLOCK] = {};
        for (int j = 0; j < RANKS; j++) whole(a + j * in + k, in - k, tail + j * BLOCK);
        dot_block<T, DOTS, ROWS, RANKS>(x + k / (DOTS ? 2 : 1), apart, tail, BLOCK, acc);
    }
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < RANKS; j++) y[i * y_stride + j] = sum(acc[i][j]);
}

// y[row][0 … ranks) of ROWS rows. `next` is read after a.
template <typename T, bool DOTS, int ROWS>
static void shrink(const float *x, int64_t apart, const T *a, int64_t in, int64_t ranks,
                   const T *next, float *y, int64_t y_stride) {
    int64_t j = 0;
    for (; j + TILE_RANKS <= ranks; j += TILE_RANKS) {
        const T *ahead = j + 2 * TILE_RANKS <= ranks ? a + (j + TILE_RANKS) * in : next;
        dots<T, DOTS, ROWS, TILE_RANKS>(x, apart, a + j * in, in, next ? ahead : next, y + j,
                                        y_stride);
    }
    for (; j < ranks; j++)
        dots<T, DOTS, ROWS, 1>(x, apart, a + j * in, in, nullptr, y + j, y_stride);
}

// acc += y[row] · b over `ranks` ranks and N blocks of columns, for ROWS rows. Of DOTS, y holds two
// ranks a word.
template <typename T, bool DOTS, int ROWS, int N>
AD_INLINE void expand_block(const float *y, int64_t y_stride, int64_t ranks, const T *b,
                            int64_t b_stride, vf (*acc)[2 * N]) {
    for (int64_t j = 0; j < ranks; j += DOTS ? 2 : 1) {
        vf bs[2 * N];
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            const T *at = b + j * b_stride + n * BLOCK;
            if constexpr (DOTS) {
                vu first = (vu)load((const float *)at), second = {};
                if (j + 1 < ranks) second = (vu)load((const float *)(at + b_stride));
                bs[2 * n] = (vf)((first & 0xffffu) | second << 16);
                bs[2 * n + 1] = (vf)(first >> 16 | (second & 0xffff0000u));
            } else {
                bs[2 * n] = half<0>(at);
                bs[2 * n + 1] = half<1>(at);
            }
        }
#pragma GCC unroll 6
        for (int i = 0; i < ROWS; i++) {
            const float w = y[i * y_stride + j / (DOTS ? 2 : 1)];
#pragma GCC unroll 4
            for (int n = 0; n < 2 * N; n++)
                if constexpr (DOTS)
                    acc[i][n] = dot_pairs(acc[i][n], bs[n], (vf)((vu){} + bits_of(w)));
                else
                    acc[i][n] += w * bs[n];
        }
    }
}

// out[row][0 … left) += y[row] · b, where `left` is less than a block.
template <typename T, bool DOTS, int ROWS>
static void expand_tail(const float *y, int64_t y_stride, int64_t ranks, const T *b,
                        int64_t b_stride, T *out, int64_t out_stride, int64_t left) {
    vf acc[ROWS][2] = {};
    for (int64_t j = 0; j < ranks; j += 2) {
        T pair[2 * BLOCK] = {};
        const int64_t count = ranks - j < 2 ? 1 : 2;
        for (int64_t n = 0; n < count; n++)
            whole(b + (j + n) * b_stride, left, pair + n * BLOCK);
        expand_block<T, DOTS, ROWS, 1>(y + j / (DOTS ? 2 : 1), y_stride, count, pair, BLOCK, acc);
    }
    for (int i = 0; i < ROWS; i++) {
        T block[BLOCK] = {}, *to = out + i * out_stride;
        whole(to, left, block);
        store_halves(block, half<0>(block) + acc[i][0], half<1>(block) + acc[i][1]);
        for (int64_t o = 0; o < left; o++) to[o] = block[o];
    }
}

// out[row][0 … columns) += y[row] · b for ROWS rows. A row by itself streams over b, its sums
// [columns] waiting in the nearest cache; of several, the sums of some columns stay in registers.
// `cold`: b is probably not in a cache. `next`: what is read after it, or null.
template <typename T, bool DOTS, int ROWS>
static void expand(const float *y, int64_t y_stride, int64_t ranks, const T *b, int64_t b_stride,
                   T *out, int64_t out_stride, int64_t columns, float *sums, bool cold,
                   const T *next) {
    const int64_t full = columns / BLOCK * BLOCK, bytes = BLOCK * sizeof(T);
    int64_t o = 0;
    if constexpr (ROWS == 1) {
        for (; o < full; o++) sums[o] = 0;
        for (int64_t j = 0; j < ranks; j += STREAM) {
            const T *row = b + j * b_stride, *ahead = row + STREAM * b_stride;
            const int64_t left = ranks - j - STREAM, wanted = left < STREAM ? left : STREAM;
            for (o = 0; o < full; o += BLOCK) {
                for (int64_t n = 0; n < wanted; n++) ask_block(ahead + n * b_stride + o, bytes);
                if (left <= 0 && next) ask_block(next + o, bytes);
                vf acc[1][2] = {{load(sums + o), load(sums + o + VL)}};
                const float *ys = y + j / (DOTS ? 2 : 1);
                if (left >= 0)
                    expand_block<T, DOTS, 1, 1>(ys, 0, STREAM, row + o, b_stride, acc);
                else
                    expand_block<T, DOTS, 1, 1>(ys, 0, left + STREAM, row + o, b_stride, acc);
                store(sums + o, acc[0][0]);
                store(sums + o + VL, acc[0][1]);
            }
        }
        for (o = 0; o < full; o += BLOCK)
            store_halves(out + o, half<0>(out + o) + load(sums + o),
                         half<1>(out + o) + load(sums + o + VL));
    } else {
        for (; o + TILE_BLOCKS * BLOCK <= full; o += TILE_BLOCKS * BLOCK) {
            if (cold)
                for (int64_t j = 0; j < ranks; j++)
                    ask_block(b + j * b_stride + o + 2 * TILE_BLOCKS * BLOCK, TILE_BLOCKS * bytes);
            vf acc[ROWS][2 * TILE_BLOCKS] = {};
            expand_block<T, DOTS, ROWS, TILE_BLOCKS>(y, y_stride, ranks, b + o, b_stride, acc);
#pragma GCC unroll 6
            for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
                for (int n = 0; n < TILE_BLOCKS; n++) {
                    T *to = out + i * out_stride + o + n * BLOCK;
                    store_halves(to, half<0>(to) + acc[i][2 * n], half<1>(to) + acc[i][2 * n + 1]);
                }
        }
        for (; o < full; o += BLOCK) {
            vf acc[ROWS][2] = {};
            expand_block<T, DOTS, ROWS, 1>(y, y_stride, ranks, b + o, b_stride, acc);
            for (int i = 0; i < ROWS; i++) {
                T *to = out + i * out_stride + o;
                store_halves(to, half<0>(to) + acc[i][0], half<1>(to) + acc[i][1]);
            }
        }
    }
    if (o < columns)
        expand_tail<T, DOTS, ROWS>(y, y_stride, ranks, b + o, b_stride, out + o, out_stride,
                                   columns - o);
}

// Rows that use one slot, at most TILE_ROWS of them; the slot's a and b begin at `row`.
struct Tile {
    int64_t start, rows, slot, row;
    bool first;  // of its segment
};

// A thread's room for one tile.
struct TileRoom {
    float *x, *y, *words, *sums;
    int64_t x_stride, y_stride;
};

template <typename T, bool DOTS>
struct LowRank {
    const ad_lora *p;
    int64_t most;  // the highest rank of any tile in any member

    TileRoom room(Scratch<float> *own) const {
        int64_t widest = 0;
        for (int64_t m = 0; m < p->members; m++)
            if (p->member[m].out_features > widest) widest = p->member[m].out_features;
        const int64_t x = TILE_ROWS * floats_of<DOTS>(p->in_features), y = TILE_ROWS * most;
        float *data = own->room(x + round_up(y, VL) * 2 + round_up(widest, BLOCK));
        return {data,
                data + x,
                data + x + round_up(y, VL),
                data + x + 2 * round_up(y, VL),
                floats_of<DOTS>(p->in_features),
                most};
    }

    void lay_out_x(const Tile &tile, const TileRoom &room) const {
        for (int64_t r = 0; r < tile.rows; r++)
            lay_out<T, DOTS>((const T *)p->x + (tile.start + r) * p->x_stride, p->in_features,
                             room.x + r * room.x_stride);
    }

    // y[row][0 … ranks) for ranks [from, from + ranks) of a member.
    void shrink_tile(const Tile &tile, const ad_lora_member &member, int64_t from, int64_t ranks,
                     const TileRoom &room, float *y) const {
        const int64_t in = p->in_features, xs = room.x_stride, ys = room.y_stride;
        const T *a = (const T *)member.a + (tile.row + from) * in;
        // What is read after a is b, in rows of another length: near enough.
        const T *next =
            tile.first ? (const T *)member.b + tile.row * member.out_features : nullptr;
        static constexpr decltype(&shrink<T, DOTS, 1>) by_rows[TILE_ROWS] = {
            shrink<T, DOTS, 1>, shrink<T, DOTS, 2>, shrink<T, DOTS, 3>,
            shrink<T, DOTS, 4>, shrink<T, DOTS, 5>, shrink<T, DOTS, 6>,
        };
        by_rows[tile.rows - 1](room.x, xs, a, in, ranks, next, y, ys);
    }

    // Adds columns [from, from + columns) of a member.
    void expand_tile(const Tile &tile, const ad_lora_member &member, int64_t from, int64_t columns,
                     const TileRoom &room, const float *y, const T *next) const {
        const int64_t rank = member.ranks[tile.slot], width = member.out_features;
        const int64_t stride = member.out_stride, ys = room.y_stride;
        const T *b = (const T *)member.b + tile.row * width + from;
        T *out = (T *)member.out + tile.start * stride + from;
        if constexpr (DOTS) {
            for (int64_t r = 0; r < tile.rows; r++)
                for (int64_t j = 0; j < rank; j += 2) {
                    const float *at = y + r * ys + j;
                    const uint32_t odd = j + 1 < rank ? bf16_bits(at[1]) : 0;
                    const uint32_t word = bf16_bits(at[0]) | odd << 16;
                    __builtin_memcpy(room.words + r * ys + j / 2, &word, sizeof word);
                }
            y = room.words;
        }
        static constexpr decltype(&expand<T, DOTS, 1>) by_rows[TILE_ROWS] = {
            expand<T, DOTS, 1>, expand<T, DOTS, 2>, expand<T, DOTS, 3>,
            expand<T, DOTS, 4>, expand<T, DOTS, 5>, expand<T, DOTS, 6>,
        };
        by_rows[tile.rows - 1](y, ys, rank, b, width, out, stride, columns, room.sums, tile.first,
                               next);
    }

    // All of a tile; the next one's a and b begin at `next_row`.
    void whole_tile(const Tile &tile, int64_t next_row, const TileRoom &room) const {
        lay_out_x(tile, room);
        for (int64_t m = 0; m < p->members; m++) {
            const ad_lora_member &member = p->member[m];
            const int64_t rank = member.ranks[tile.slot];
            if (!rank) continue;
            const bool last = m + 1 == p->members;
            const int64_t a_of_slot = (last ? next_row : tile.row) * p->in_features;
            const T *next =
                tile.first ? (const T *)p->member[last ? 0 : m + 1].a + a_of_slot : nullptr;
            shrink_tile(tile, member, 0, rank, room, room.y);
            expand_tile(tile, member, 0, member.out_features, room, room.y, next);
        }
    }
};

// The tiles of all segments that have a rank in some member, and how many. Those of high rank come
// first, so that no thread begins one when the others have nothing left to do.
static int64_t cut_tiles(const ad_lora *p, int64_t most, Tile *tiles) {
    int64_t count = 0;
    for (int high = 1; high >= 0; high--)
        for (int64_t s = 0; s < p->segments; s++) {
            const ad_segment &segment = p->segment[s];
            int64_t rank = 0;
            for (int64_t m = 0; m < p->members; m++) {
                const int64_t own = p->member[m].ranks[segment.slot];
                if (own > rank) rank = own;
            }
            if (!rank || (2 * rank > most) != high) continue;
            for (int64_t at = 0; at < segment.count; at += TILE_ROWS) {
                const int64_t left = segment.count - at;
                tiles[count++] = {segment.start + at, left < TILE_ROWS ? left : TILE_ROWS,
                                  segment.slot, segment.row, at == 0};
            }
        }
    return count;
}

template <typename T, bool DOTS>
static void lora_add_of(const ad_lora *p) {
    static thread_local Scratch<Tile> tile_scratch;
    static thread_local Scratch<float> shrunk_scratch;
    const int64_t members = p->members;
    int64_t room = 0, most = 0, products = 0;
    for (int64_t s = 0; s < p->segments; s++) {
        const ad_segment &segment = p->segment[s];
        room += (segment.count + TILE_ROWS - 1) / TILE_ROWS;
        for (int64_t m = 0; m < members; m++) {
            const int64_t rank = p->member[m].ranks[segment.slot];
            products += segment.count * rank * (p->in_features + p->member[m].out_features);
            if (rank > most) most = rank;
        }
    }
    if (!most) return;
    Tile *tiles = tile_scratch.room(room);
    const int64_t count = cut_tiles(p, most, tiles);
    const LowRank<T, DOTS> job = {p, most};
    int64_t threads = omp_get_max_threads();
    if (products / THREAD_PRODUCTS < threads) threads = products / THREAD_PRODUCTS;
    if (threads < 1) threads = 1;
    if (threads == 1 || count >= 4 * threads) {
        const int64_t run = (count + 4 * threads - 1) / (4 * threads);
#pragma omp parallel for schedule(dynamic, run) num_threads(threads) if (threads > 1)
        for (int64_t i = 0; i < count; i++) {
            static thread_local Scratch<float> own;
            job.whole_tile(tiles[i], tiles[i + 1 < count ? i + 1 : i].row, job.room(&own));
        }
        return;
    }
    int64_t columns = 0;  // pieces of all members'
    for (int64_t m = 0; m < members; m++)
        columns += (p->member[m].out_features + COLUMNS - 1) / COLUMNS;
    const int64_t ranks = (most + TILE_RANKS - 1) / TILE_RANKS;  // pieces of a member's
    float *ys = shrunk_scratch.room(count * members * TILE_ROWS * most);
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch<float> own;
        const TileRoom mine = job.room(&own);
        int64_t laid_out = count;  // the tile whose x is
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * members * ranks; i++) {
            const int64_t t = i / (members * ranks), m = i / ranks % members;
            const int64_t from = i % ranks * TILE_RANKS;
            const int64_t left = p->member[m].ranks[tiles[t].slot] - from;
            if (left <= 0) continue;
            if (laid_out != t) job.lay_out_x(tiles[t], mine);
            laid_out = t;
            job.shrink_tile(tiles[t], p->member[m], from, left < TILE_RANKS ? left : TILE_RANKS,
                            mine, ys + (t * members + m) * TILE_ROWS * most + from);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * columns; i++) {
            const int64_t t = i / columns;
            int64_t m = 0, from = i % columns * COLUMNS;
            for (; from >= round_up(p->member[m].out_features, COLUMNS); m++)
                from -= round_up(p->member[m].out_features, COLUMNS);
            if (!p->member[m].ranks[tiles[t].slot]) continue;
            const int64_t left = p->member[m].out_features - from;
            job.expand_tile(tiles[t], p->member[m], from, left < COLUMNS ? left : COLUMNS, mine,
                            ys + (t * members + m) * TILE_ROWS * most, nullptr);
        }
    }
}

static void lora_add(const ad_lora *p) {
    if (p->dtype != AD_BFLOAT16) return lora_add_of<float, false>(p);
#ifdef AD_BF16_DOTS
    lora_add_of<bf16, true>(p);
#else
    lora_add_of<bf16, false>(p);
#endif
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
