// Attention straight from the paged cache: nothing is gathered. A chunk of one row (a decode) goes
// by one query row at a time, longer ones by tiles (attention_tile.h).
//
// Online softmax over runs of tokens (Milakov and Gimelshein, arXiv:1805.02867); the query heads
// that share keys are done together, so each key and value is read once. Long contexts are cut
// into parts, whose partial sums are merged (flash-decoding). Where a context is cut depends on
// the chunk alone, so a row's result does not depend on the rest of the batch, nor on how many
// threads there are. Included inside a namespace, after vec.h.

static constexpr int RUN = 32;        // tokens whose scores are held at once
static constexpr int64_t PART = 512;  // tokens of a decode's part, at most
static constexpr int64_t TILE_PART = 32 * TILE_KEYS;  // tokens of a tile's part
static constexpr int HEADS = 4;       // query heads whose sums are held in registers at once

template <typename T>
AD_INLINE void fetch(const T *row, int64_t dim) {
    for (int64_t at = 0; at < dim; at += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(row + at, 0, 2);
}

static constexpr int KEYS = 4;  // keys whose sums are held in registers at once

// acc[h][i] += q[h] · row[i] from `d` on, over whole vectors; the first number that is left.
template <typename T, int HS>
AD_INLINE int64_t dot_floats(const T *q, int64_t dim, const T *const *row, vf (&acc)[HS][KEYS],
                             int64_t d) {
    for (; d + VL <= dim; d += VL) {
        vf ks[KEYS];
#pragma GCC unroll 4
        for (int i = 0; i < KEYS; i++) ks[i] = load(row[i] + d);
#pragma GCC unroll 4
        for (int h = 0; h < HS; h++) {
            const vf qs = load(q + h * dim + d);
#pragma GCC unroll 4
            for (int i = 0; i < KEYS; i++) acc[h][i] += qs * ks[i];
        }
    }
    return d;
}

template <int HS>
AD_INLINE int64_t dot_keys(const float *q, int64_t dim, const float *const *row,
                           vf (&acc)[HS][KEYS]) {
    return dot_floats(q, dim, row, acc, 0);
}

template <int HS>
AD_INLINE int64_t dot_keys(const bf16 *q, int64_t dim, const bf16 *const *row,
                           vf (&acc)[HS][KEYS]) {
    int64_t d = 0;
#ifdef AD_AVX512_BF16
    for (; d + 2 * VL <= dim; d += 2 * VL) {
        __m512bh ks[KEYS];
#pragma GCC unroll 4
        for (int i = 0; i < KEYS; i++) ks[i] = (__m512bh)_mm512_loadu_si512(row[i] + d);
#pragma GCC unroll 4
        for (int h = 0; h < HS; h++) {
            const __m512bh qs = (__m512bh)_mm512_loadu_si512(q + h * dim + d);
#pragma GCC unroll 4
            for (int i = 0; i < KEYS; i++)
                acc[h][i] = (vf)_mm512_dpbf16_ps((__m512)acc[h][i], qs, ks[i]);
        }
    }
#endif
    return dot_floats(q, dim, row, acc, d);
}

// What is left of a head after its whole vectors. By itself, for it is rare and long.
template <typename T, int HS>
__attribute__((noinline)) static void score_rest(const T *q, int64_t dim, int64_t from,
                                                 const T *const *row, int64_t run,
                                                 float (*scores)[RUN]) {
    for (int h = 0; h < HS; h++)
        for (int64_t i = 0; i < run; i++)
            for (int64_t d = from; d < dim; d++)
                scores[h][i] += to_float(q[h * dim + d]) * to_float(row[i][d]);
}

// scores[h][i] = q[h] · row[i] for HS query heads, each key read once. `row` goes on to a whole
// number of KEYS.
template <typename T, int HS>
AD_INLINE void score(const T *q, int64_t dim, const T *const *row, int64_t run,
                     float (*scores)[RUN]) {
    int64_t whole = 0;
    for (int64_t i = 0; i < run; i += KEYS) {
        vf acc[HS][KEYS] = {};
        whole = dot_keys<HS>(q, dim, row + i, acc);
#pragma GCC unroll 4
        for (int h = 0; h < HS; h++) sums(acc[h], scores[h] + i);
    }
    if (whole < dim) score_rest<T, HS>(q, dim, whole, row, run, scores);
}

// acc[h][0 … VECTORS·VL) += Σ weights[h][i] · row[i], for HS heads, each value read once.
template <typename T, int HS, int VECTORS>
AD_INLINE void mix(const float (*weights)[RUN], const T *const *row, int64_t offset, int64_t run,
                   float *acc, int64_t dim) {
    vf sums[HS][VECTORS];
#pragma GCC unroll 4
    for (int h = 0; h < HS; h++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sums[h][v] = load(acc + h * dim + v * VL);
    for (int64_t i = 0; i < run; i++) {
        vf vs[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) vs[v] = load(row[i] + offset + v * VL);
#pragma GCC unroll 4
        for (int h = 0; h < HS; h++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[h][v] += weights[h][i] * vs[v];
    }
#pragma GCC unroll 4
    for (int h = 0; h < HS; h++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(acc + h * dim + v * VL, sums[h][v]);
}

// One run of tokens for HS query heads of one kv head: `greatest`, `total` and the unscaled sums
// `acc` [HS, value_dim] go on from what they were.
template <typename T, int HS>
AD_INLINE void attend_run(const ad_attention *p, const T *q, const T *const *keys,
                          const T *const *values, int64_t run, float *greatest, float *total,
                          float *acc) {
    const int64_t vd = p->value_dim, apart = sums_apart(p);
    float scores[HS][RUN];
    score<T, HS>(q, p->key_dim, keys, run, scores);
    for (int h = 0; h < HS; h++) {
        for (int64_t i = 0; i < RUN; i += VL) store(scores[h] + i, load(scores[h] + i) * p->scale);
        if (p->softcap > 0)
            for (int64_t i = 0; i < run; i++)
                scores[h][i] = p->softcap * tanhf(scores[h][i] / p->softcap);
        for (int64_t i = run; i < RUN; i++) scores[h][i] = -INFINITY;
        // A NaN score is never the greatest, but its weight is NaN and so is the whole row.
        vf tops = splat(greatest[h]);
        for (int64_t i = 0; i < RUN; i += VL) tops = vmax(load(scores[h] + i), tops);
        const float top = greatest_of(tops);
        const float decay = expf(greatest[h] - top);
        vf sums = {};
        for (int64_t i = 0; i < RUN; i += VL) {
            vf w = vexp(load(scores[h] + i) - top);
            store(scores[h] + i, w);
            sums += w;
        }
        greatest[h] = top;
        total[h] = total[h] * decay + sum(sums);
        if (decay != 1.0f)
            for (int64_t d = 0; d < vd; d++) acc[h * apart + d] *= decay;
    }
    int64_t d = 0;
    for (; d + 4 * VL <= vd; d += 4 * VL) mix<T, HS, 4>(scores, values, d, run, acc + d, apart);
    for (; d + VL <= vd; d += VL) mix<T, HS, 1>(scores, values, d, run, acc + d, apart);
    for (; d < vd; d++)
        for (int h = 0; h < HS; h++)
            for (int64_t i = 0; i < run; i++)
                acc[h * apart + d] += scores[h][i] * to_float(values[i][d]);
}

// The row of a decode attends the query heads of kv heads [first, first + together) to tokens
// [from, to). Each kv head has a record of sums, `records` on, `between` floats apart. Kv heads
// take turns over each run of tokens, so that blocks are read in the order in which they lie in
// memory.
template <typename T>
static void attend_row(const ad_attention *p, int64_t chunk, int64_t first, int64_t together,
                       int64_t from, int64_t to, T *q, float *records, int64_t between) {
    const int64_t share = p->heads / p->kv_heads, kd = p->key_dim, vd = p->value_dim;
    const int64_t size = p->block_size, *table = p->tables + chunk * p->table_stride;
    const int64_t apart = sums_apart(p);
    for (int64_t g = 0; g < together * share; g++) {
        const T *row = (const T *)p->q + p->query_starts[chunk] * p->q_token_stride +
                       (first * share + g) * p->q_head_stride;
        memcpy(q + g * kd, row, (size_t)kd * sizeof(T));
    }
    for (int64_t i = 0; i < together; i++)
        clear_sums(p, sums_at(records + i * between, share), share);
    const T *keys[RUN], *values[RUN];
    int64_t places[2 * RUN];  // of a run's tokens, and of the next run's
    for (int64_t t = from; t < to; t += RUN) {
        const int64_t run = to - t < RUN ? to - t : RUN;
        // What the next run reads is asked for now: blocks lie anywhere, and memory is far.
        const int64_t ahead = to - t - run < RUN ? to - t - run : RUN;
        for (int64_t i = 0, block = t / size, at = t % size; i < run + ahead; i++, at++) {
            if (at == size) block++, at = 0;
            places[i] = (table[block] * size + at) * p->kv_heads + first;
        }
        for (int64_t kv = 0; kv < together; kv++) {
            for (int64_t i = 0; i < run; i++) {
                keys[i] = (const T *)p->keys + (places[i] + kv) * kd;
                values[i] = (const T *)p->values + (places[i] + kv) * vd;
            }
            for (int64_t i = run; i % KEYS; i++) keys[i] = keys[run - 1];
            for (int64_t i = run; i < run + ahead; i++) {
                fetch((const T *)p->keys + (places[i] + kv) * kd, kd);
                fetch((const T *)p->values + (places[i] + kv) * vd, vd);
            }
            const Sums sums = sums_at(records + kv * between, share);
            for (int64_t g = 0; g < share; g += HEADS) {
                const T *qs = q + (kv * share + g) * kd;
                float *top = sums.greatest + g, *total = sums.total + g;
                float *acc = sums.values + g * apart;
                switch (share - g < HEADS ? share - g : HEADS) {
                    case 1: attend_run<T, 1>(p, qs, keys, values, run, top, total, acc); break;
                    case 2: attend_run<T, 2>(p, qs, keys, values, run, top, total, acc); break;
                    case 3: attend_run<T, 3>(p, qs, keys, values, run, top, total, acc); break;
                    default: attend_run<T, HEADS>(p, qs, keys, values, run, top, total, acc);
                }
            }
        }
    }
}

// Adds one part's sums to those of the parts before it.
static void merge_sums(const ad_attention *p, Sums into, Sums part, int64_t rows) {
    const int64_t apart = sums_apart(p);
    for (int64_t r = 0; r < rows; r++) {
        const float top = vmax(splat(part.greatest[r]), splat(into.greatest[r]))[0];
        if (top == -INFINITY) continue;  // neither saw anything
        const float ours = expf(into.greatest[r] - top), theirs = expf(part.greatest[r] - top);
        into.greatest[r] = top;
        into.total[r] = into.total[r] * ours + part.total[r] * theirs;
        for (int64_t d = r * apart; d < (r + 1) * apart; d += VL)
            store(into.values + d, load(into.values + d) * ours + load(part.values + d) * theirs);
    }
}

// out = the weighted mean of values, with the sink among the weights: of query rows from `token`
// on, all heads that share kv head `kv` in each.
template <typename T>
static void finish(const ad_attention *p, int64_t token, int64_t tokens, int64_t kv, Sums sums) {
    const int64_t share = p->heads / p->kv_heads, vd = p->value_dim;
    for (int64_t r = 0; r < tokens * share; r++) {
        const int64_t head = kv * share + r % share;
        float factor = 1, total = sums.total[r];
        if (p->sinks) {
            const float sink = p->sinks[head], own = sums.greatest[r];
            const float top = sink > own ? sink : own;
            factor = expf(own - top);
            total = total * factor + expf(sink - top);
        }
        factor /= total;
        const float *values = sums.values + r * sums_apart(p);
        T *out = (T *)p->out + ((token + r / share) * p->heads + head) * vd;
        int64_t d = 0;
        for (; d + VL <= vd; d += VL) store(out + d, load(values + d) * factor);
        for (; d < vd; d++) store1(out + d, values[d] * factor);
    }
}

// One thread's piece of the whole: rows of a chunk × kv heads × a part of the context.
struct Work {
    bool decode;                  // a row by itself, or else a tile
    int64_t chunk, first, count;  // of the chunk's rows
    int64_t kv, together;         // kv heads; together is one where it is a tile
    int64_t from, to;             // tokens
    int64_t part, parts;          // which part of the context; its parts follow each other
    int64_t rows, record;         // query rows of a record; where the records begin, in floats
};

// Cuts a chunk into pieces of work, the longest first, and writes them to `work` unless it is null.
// Returns how many there are. `record` goes up by the floats of their records; a piece that is all
// its rows' context has none. `groups`: pieces that share a decode's kv heads.
static int64_t cut(const ad_attention *p, int64_t chunk, int64_t groups, Work *work,
                   int64_t *record) {
    const int64_t share = p->heads / p->kv_heads, context = p->contexts[chunk];
    const int64_t count = p->query_starts[chunk + 1] - p->query_starts[chunk];
    const bool decode = count == 1;
    const int64_t tokens = decode ? 1 : (TILE_QUERIES + share - 1) / share;
    const int64_t together = decode ? p->kv_heads / groups : 1;
    int64_t found = 0;
    for (int64_t last = count; last > 0; last = (last - 1) / tokens * tokens) {
        const int64_t first = (last - 1) / tokens * tokens, to = context - count + last;
        const int64_t hidden = p->window ? context - count + first + 1 - p->window : 0;
        int64_t from = hidden > 0 ? hidden : 0, size = TILE_PART;
        if (decode)  // equal parts
            size = (to - from + (to - from - 1) / PART) / ((to - from - 1) / PART + 1);
        else
            from = from / TILE_PART * TILE_PART;
        const int64_t parts = (to - from + size - 1) / size;
        const int64_t rows = decode ? share : round_up((last - first) * share, BLOCK_ROWS);
        for (int64_t kv = 0; kv < p->kv_heads; kv += together)
            for (int64_t part = 0; part < parts; part++, found++) {
                const int64_t start = from + part * size;
                const int64_t end = start + size < to ? start + size : to;
                if (work)
                    work[found] = {decode, chunk, first, last - first, kv,   together,
                                   start,  end,   part,  parts,        rows, *record};
                if (parts > 1) *record += together * sums_size(p, rows);
            }
    }
    return found;
}

template <typename T>
static void paged_attention_of(const ad_attention *p) {
    static thread_local Scratch<Work> work_scratch;
    static thread_local Scratch<float> record_scratch;
    int64_t decodes = 0, pieces = 0, size = 0;
    for (int64_t c = 0; c < p->chunks; c++)
        decodes += p->query_starts[c + 1] - p->query_starts[c] == 1;
    const int64_t groups = decodes >= 4 * omp_get_max_threads() ? 1 : p->kv_heads;
    for (int64_t c = 0; c < p->chunks; c++) pieces += cut(p, c, groups, nullptr, &size);
    Work *work = work_scratch.room(pieces);
    float *records = record_scratch.room(size);
    pieces = size = 0;
    for (int64_t c = p->chunks - 1; c >= 0; c--)  // decodes last: they fill the gaps
        pieces += cut(p, c, groups, work + pieces, &size);
    const int64_t share = p->heads / p->kv_heads;
#pragma omp parallel if (pieces > 1)
    {
        static thread_local Scratch<float> own;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < pieces; i++) {
            const Work &w = work[i];
            const int64_t between = sums_size(p, w.rows);
            const int64_t token = p->query_starts[w.chunk] + w.first;
            const int64_t room = w.decode ? w.together * share * p->key_dim
                                              : tile_room(p, w.rows);
            float *scratch = own.room(room + w.together * between);
            float *record = w.parts > 1 ? records + w.record : scratch + room;
            if (w.decode)
                attend_row<T>(p, w.chunk, w.kv, w.together, w.from, w.to, (T *)scratch, record,
                              between);
#ifdef AD_BF16_DOTS
            else if (sizeof(T) == 2)
                attend_tile<T, 4 / sizeof(T)>(p, w.chunk, w.first, w.count, w.kv, w.from, w.to,
                                              sums_at(record, w.rows), scratch);
#endif
            else
                attend_tile<T, 1>(p, w.chunk, w.first, w.count, w.kv, w.from, w.to,
                                  sums_at(record, w.rows), scratch);
            if (w.parts == 1)
                for (int64_t k = 0; k < w.together; k++)
                    finish<T>(p, token, w.count, w.kv + k, sums_at(record + k * between, w.rows));
        }
        if (size) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < pieces; i++) {
                const Work &w = work[i];
                if (w.part || w.parts == 1) continue;
                const int64_t between = sums_size(p, w.rows);
                for (int64_t k = 0; k < w.together; k++) {
                    float *record = records + w.record + k * between;
                    const Sums sums = sums_at(record, w.rows);
                    for (int64_t n = 1; n < w.parts; n++)
                        merge_sums(p, sums, sums_at(record + n * w.together * between, w.rows),
                                   w.rows);
                    finish<T>(p, p->query_starts[w.chunk] + w.first, w.count, w.kv + k, sums);
                }
            }
        }
    }
}

static void paged_attention(const ad_attention *p) {
    if (p->dtype == AD_BFLOAT16)
        paged_attention_of<bf16>(p);
    else
        paged_attention_of<float>(p);
}

template <typename T>
static void kv_write_of(const ad_kv_write *p) {
#pragma omp parallel for schedule(static) if (p->tokens >= 64)
    for (int64_t t = 0; t < p->tokens; t++)
        for (int64_t h = 0; h < p->kv_heads; h++) {
            const int64_t to = p->places[t] * p->kv_heads + h;
            __builtin_memcpy((T *)p->keys + to * p->key_dim,
                             (const T *)p->k + t * p->k_token_stride + h * p->k_head_stride,
                             (size_t)p->key_dim * sizeof(T));
            __builtin_memcpy((T *)p->values + to * p->value_dim,
                             (const T *)p->v + t * p->v_token_stride + h * p->v_head_stride,
                             (size_t)p->value_dim * sizeof(T));
        }
}

static void kv_write(const ad_kv_write *p) {
    if (p->dtype == AD_BFLOAT16)
        kv_write_of<bf16>(p);
    else
        kv_write_of<float>(p);
}
