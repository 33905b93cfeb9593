// Attention of tiles of query rows, for prefill chunks.
//
// A tile is some tokens of one chunk × the query heads that share a kv head. Runs of keys and
// values are converted and laid out for the registers once per tile, then a block of query rows at
// a time takes scores, online softmax and weighted sum while the run is in the nearest cache; no
// matrix of scores is ever stored. Runs that no row of a block may see are skipped.
// After FlashAttention-2, arXiv:2307.08691.
//
// Runs begin at multiples of TILE_KEYS from the sequence's first token, and what is masked weighs
// exactly zero: a row's sums do not depend on which rows share its tile. Included inside a
// namespace, after vec.h.

static constexpr int BLOCK_ROWS = 6;     // query rows whose scores or sums are held in registers
static constexpr int TILE_KEYS = 128;    // tokens of a run
static constexpr int TILE_QUERIES = 96;  // query rows of a tile, about
#ifdef AD_AVX512
static constexpr int BLOCK_VECTORS = 4;  // vectors of scores or sums of each row, likewise
#else
static constexpr int BLOCK_VECTORS = 2;
#endif

// PER, below: elements that a 32-bit word of a tile's operands holds. Two, for dot products of
// pairs of bfloat16, where these are fast; else one, converted to float32.

// Unnormalised results of query rows: the greatest score, the sum of weights and the weighted sum
// of values, whose rows lie value_dim rounded up to VL floats apart.
struct Sums {
    float *greatest, *total, *values;
};

AD_INLINE int64_t sums_apart(const ad_attention *p) { return round_up(p->value_dim, VL); }
AD_INLINE int64_t sums_size(const ad_attention *p, int64_t rows) {
    return rows * (2 + sums_apart(p));
}
AD_INLINE Sums sums_at(float *record, int64_t rows) {
    return {record, record + rows, record + 2 * rows};
}
static void clear_sums(const ad_attention *p, Sums sums, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) sums.greatest[i] = -INFINITY;
    for (int64_t i = 0; i < rows; i++) sums.total[i] = 0;
    for (int64_t i = 0; i < rows * sums_apart(p); i++) sums.values[i] = 0;
}

AD_INLINE float greatest_of(vf v) {
#ifdef AD_AVX512
    return _mm512_reduce_max_ps((__m512)v);
#else
    float top = v[0];
    for (int i = 1; i < VL; i++) top = v[i] > top ? v[i] : top;
    return top;
#endif
}

// cap · tanh(x / cap)
AD_INLINE vf soft_cap(vf x, float cap) {
    return cap - 2.0f * cap / (vexp(x * (2.0f / cap)) + 1.0f);
}

// acc + words · word, of as many products a lane as a word holds.
template <int PER>
AD_INLINE vf multiply_add(vf acc, vf words, float word) {
#ifdef AD_BF16_DOTS
    if constexpr (PER == 2)
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)words, (__m512bh)_mm512_set1_ps(word));
#endif
    return acc + words * word;
}

// The word of elements [at, at + PER) of a row of `dim`; zero beyond its end.
template <int PER, typename T>
AD_INLINE float word_at(const T *row, int64_t at, int64_t dim) {
    if constexpr (PER == 1) {
        return at < dim ? to_float(row[at]) : 0.0f;
    } else {
        T pair[2] = {at < dim ? row[at] : T{}, at + 1 < dim ? row[at + 1] : T{}};
        float word;
        __builtin_memcpy(&word, pair, sizeof word);
        return word;
    }
}

#ifdef AD_AVX512
// Rows of 16 words become columns: four times, rows i and i + 8 are dealt out in turn.
AD_INLINE void transpose(vf *rows) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
    for (int stage = 0; stage < 4; stage++) {
        vf dealt[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512 a = (__m512)rows[i], b = (__m512)rows[i + 8];
            dealt[2 * i] = (vf)_mm512_permutex2var_ps(a, low, b);
            dealt[2 * i + 1] = (vf)_mm512_permutex2var_ps(a, high, b);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) rows[i] = dealt[i];
    }
}
#endif

// keys[word][key] of `count` rows, a multiple of VL: lanes are keys.
template <int PER, typename T>
static void pack_keys(const T *const *row, int64_t count, int64_t dim, float *keys) {
    for (int64_t i = 0; i < count; i += VL) {
        int64_t d = 0;
#ifdef AD_AVX512
        for (; d + 16 * PER <= dim; d += 16 * PER) {
            vf words[16];
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) {
                if constexpr (PER == 2)
                    words[j] = load((const float *)(row[i + j] + d));
                else
                    words[j] = load(row[i + j] + d);
            }
            transpose(words);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) store(keys + (d / PER + j) * TILE_KEYS + i, words[j]);
        }
#endif
        for (; d < dim; d += PER)
            for (int j = 0; j < VL; j++)
                keys[d / PER * TILE_KEYS + i + j] = word_at<PER>(row[i + j], d, dim);
    }
}

// values[word][d]: lanes are dimensions, a word holds PER keys. Rows are `apart` words long.
template <int PER, typename T>
static void pack_values(const T *const *row, int64_t count, int64_t dim, float *values,
                        int64_t apart) {
    for (int64_t i = 0; i < count; i += PER) {
        float *to = values + i / PER * apart;
        int64_t d = 0;
        for (; d + VL <= dim; d += VL) {
            if constexpr (PER == 2)
                store(to + d, (vf)((vu)load(row[i] + d) >> 16 | (vu)load(row[i + 1] + d)));
            else
                store(to + d, load(row[i] + d));
        }
        for (; d < apart; d++) {
            if constexpr (PER == 2) {
                const T pair[2] = {d < dim ? row[i][d] : T{}, d < dim ? row[i + 1][d] : T{}};
                to[d] = word_at<PER>(pair, 0, 2);
            } else {
                to[d] = word_at<PER>(row[i], d, dim);
            }
        }
    }
}

// scores[r][0 … N·VL) = scale · q[r] · keys
template <int PER, int N>
AD_INLINE void tile_scores(const float *q, int64_t words, const float *keys, float scale,
                           float *scores) {
    vf acc[BLOCK_ROWS][N] = {};
    for (int64_t w = 0; w < words; w++) {
        vf ks[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) ks[n] = load(keys + w * TILE_KEYS + n * VL);
#pragma GCC unroll 6
        for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                acc[r][n] = multiply_add<PER>(acc[r][n], ks[n], q[r * words + w]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(scores + r * TILE_KEYS + n * VL, acc[r][n] * scale);
}

// sums[r][0 … N·VL) = decay[r] · sums[r] + weights[r] · values
template <int PER, int N>
AD_INLINE void tile_mix(const float *weights, const float *decay, const float *values,
                        int64_t words, float *sums, int64_t apart) {
    vf acc[BLOCK_ROWS][N];
#pragma GCC unroll 6
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) acc[r][n] = load(sums + r * apart + n * VL) * decay[r];
    for (int64_t w = 0; w < words; w++) {
        vf vs[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) vs[n] = load(values + w * apart + n * VL);
#pragma GCC unroll 6
        for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                acc[r][n] = multiply_add<PER>(acc[r][n], vs[n], weights[r * TILE_KEYS + w]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(sums + r * apart + n * VL, acc[r][n]);
}

// weights[at … at + VL) = w, which may overwrite scores up to there.
template <int PER>
AD_INLINE void store_weights(float *weights, int64_t at, vf w) {
#ifdef AD_BF16_DOTS
    if constexpr (PER == 2) {
        __m256bh halves = _mm512_cvtneps_pbh((__m512)w);
        __builtin_memcpy(weights + at / 2, &halves, sizeof halves);
        return;
    }
#endif
    store(weights + at, w);
}

// Turns the scores of keys [begin, end) of a run into weights, in place; the others, up to
// `count`, weigh nothing. Returns the factor for what was summed before.
template <int PER>
AD_INLINE float weigh(float *scores, int64_t count, int64_t begin, int64_t end, float cap,
                      float *greatest, float *total) {
    vi lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    if (cap > 0)
        for (int64_t i = 0; i < count; i += VL) store(scores + i, soft_cap(load(scores + i), cap));
    if (begin > 0 || end < count)
        for (int64_t i = 0; i < count; i += VL) {
            vi at = lane + (int32_t)i;
            vi seen = (at >= (int32_t)begin) & (at < (int32_t)end);
            store(scores + i, select(seen, load(scores + i), splat(-INFINITY)));
        }
    // A NaN score is never the greatest, but its weight is NaN and so is the whole row.
    vf tops = splat(*greatest);
    for (int64_t i = 0; i < count; i += VL) tops = vmax(load(scores + i), tops);
    const float top = greatest_of(tops);
    const float base = top == -INFINITY ? 0.0f : top;  // nothing seen yet: e^(-inf) and no NaN
    vf sums = {};
    for (int64_t i = 0; i < count; i += VL) {
        vf w = vexp(load(scores + i) - base);
        sums += w;
        store_weights<PER>(scores, i, w);
    }
    const float decay = *greatest == top ? 1.0f : expf(*greatest - base);
    *greatest = top;
    *total = *total * decay + sum(sums);
    return decay;
}

// A block of query rows, the tile's from `first` on, takes in the run's keys [0, seen). `position`
// is that of the tile's first token, counted from the run's.
template <int PER>
AD_INLINE void attend_block(const ad_attention *p, const float *q, int64_t words,
                            const float *keys, const float *values, int64_t seen,
                            int64_t position, int64_t first, Sums sums) {
    constexpr int WIDE = BLOCK_VECTORS * VL;
    const int64_t share = p->heads / p->kv_heads, apart = sums_apart(p);
    alignas(64) float scores[BLOCK_ROWS * TILE_KEYS];
    float decay[BLOCK_ROWS];
    int64_t i = 0, d = 0;
    for (; i + WIDE <= seen; i += WIDE)
        tile_scores<PER, BLOCK_VECTORS>(q, words, keys + i, p->scale, scores + i);
    for (; i < seen; i += VL) tile_scores<PER, 1>(q, words, keys + i, p->scale, scores + i);
    for (int64_t r = 0; r < BLOCK_ROWS; r++) {
        const int64_t at = position + (first + r) / share;
        const int64_t begin = p->window ? at + 1 - p->window : 0;
        decay[r] = weigh<PER>(scores + r * TILE_KEYS, seen, begin, at + 1, p->softcap,
                              sums.greatest + r, sums.total + r);
    }
    for (; d + WIDE <= apart; d += WIDE)
        tile_mix<PER, BLOCK_VECTORS>(scores, decay, values + d, seen / PER, sums.values + d, apart);
    for (; d < apart; d += VL)
        tile_mix<PER, 1>(scores, decay, values + d, seen / PER, sums.values + d, apart);
}

// Floats of scratch memory that a tile takes: `rows` query rows, a run, and a row of zeros.
static int64_t tile_room(const ad_attention *p, int64_t rows) {
    const int64_t kd = round_up(p->key_dim, VL), vd = sums_apart(p);
    return (rows + TILE_KEYS) * kd + TILE_KEYS * vd + round_up(kd + vd, 16);
}

// Rows [first, first + count) of a chunk, in the query heads of one kv head, attend to those of
// tokens [from, to) that each may see; `from` is a multiple of TILE_KEYS. `sums` are of
// count · share query rows, heads innermost, rounded up to BLOCK_ROWS.
template <typename T, int PER>
static void attend_tile(const ad_attention *p, int64_t chunk, int64_t first, int64_t count,
                        int64_t kv, int64_t from, int64_t to, Sums sums, float *room) {
    const int64_t share = p->heads / p->kv_heads, kd = p->key_dim, vd = p->value_dim;
    const int64_t words = (kd + PER - 1) / PER, apart = sums_apart(p), size = p->block_size;
    const int64_t rows = count * share, padded = round_up(rows, BLOCK_ROWS);
    const int64_t token = p->query_starts[chunk] + first;
    const int64_t ends = p->query_starts[chunk + 1] - p->query_starts[chunk];
    const int64_t position = p->contexts[chunk] - ends + first;  // of the tile's first token
    const int64_t *table = p->tables + chunk * p->table_stride;
    if (to > position + count) to = position + count;
    if (p->window && position + 1 - p->window > from)
        from = (position + 1 - p->window) / TILE_KEYS * TILE_KEYS;

    float *keys = room, *values = keys + TILE_KEYS * round_up(kd, VL);
    float *zeros = values + TILE_KEYS * apart;
    float *q = zeros + (apart > round_up(kd, VL) ? apart : round_up(kd, VL));
    for (float *zero = zeros; zero < q; zero++) *zero = 0;
    for (int64_t r = 0; r < padded; r++) {
        const T *row = (const T *)p->q + (token + r / share) * p->q_token_stride +
                       (kv * share + r % share) * p->q_head_stride;
        for (int64_t w = 0; w < words; w++)
            q[r * words + w] = r < rows ? word_at<PER>(row, w * PER, kd) : 0.0f;
    }
    clear_sums(p, sums, padded);

    const T *k[TILE_KEYS], *v[TILE_KEYS];
    for (int64_t t = from; t < to; t += TILE_KEYS) {
        const int64_t run = to - t < TILE_KEYS ? to - t : TILE_KEYS;
        for (int64_t i = 0; i < TILE_KEYS; i++) {
            const int64_t row = i < run ? (table[(t + i) / size] * size + (t + i) % size) : 0;
            k[i] = i < run ? (const T *)p->keys + (row * p->kv_heads + kv) * kd : (T *)zeros;
            v[i] = i < run ? (const T *)p->values + (row * p->kv_heads + kv) * vd : (T *)zeros;
        }
        pack_keys<PER>(k, round_up(run, VL), kd, keys);
        pack_values<PER>(v, round_up(run, VL), vd, values, apart);
        for (int64_t r = 0; r < padded; r += BLOCK_ROWS) {
            const int64_t low = position + r / share;
            const int64_t last = r + BLOCK_ROWS > rows ? rows - 1 : r + BLOCK_ROWS - 1;
            const int64_t high = position + last / share;
            if (t > high || (p->window && t + TILE_KEYS <= low + 1 - p->window)) continue;
            const int64_t reach = high + 1 - t < run ? high + 1 - t : run;
            const int64_t seen = round_up(reach, VL);
            attend_block<PER>(p, q + r * words, words, keys, values, seen, position - t, r,
                              {sums.greatest + r, sums.total + r, sums.values + r * apart});
        }
    }
}
