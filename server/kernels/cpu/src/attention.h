// Attention of one query row per sequence, straight from the paged cache: nothing is gathered.
//
// Online softmax over runs of tokens (Milakov and Gimelshein, arXiv:1805.02867); the query heads
// that share keys are done together, so each key and value is read once. Long contexts of few
// sequences are cut into parts, whose partial sums are merged (flash-decoding). Included inside a
// namespace, after vec.h.

static constexpr int RUN = 32;        // tokens whose scores are held at once
static constexpr int64_t PART = 512;  // tokens of a part, at least
static constexpr int HEADS = 4;       // query heads whose sums are held in registers at once

template <typename T>
AD_INLINE void fetch(const T *row, int64_t dim) {
    for (int64_t at = 0; at < dim; at += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(row + at, 0, 2);
}

// scores[h][i] = q[h] · row[i] for HS query heads, each key read once.
template <typename T, int HS>
AD_INLINE void score(const float *q, int64_t dim, const T *const *row, int64_t run,
                     float (*scores)[RUN]) {
    for (int64_t i = 0; i < run; i++) {
        const T *k = row[i];
        vf acc[HS] = {};
        int64_t d = 0;
        for (; d + VL <= dim; d += VL) {
            vf ks = load(k + d);
#pragma GCC unroll 4
            for (int h = 0; h < HS; h++) acc[h] += load(q + h * dim + d) * ks;
        }
#pragma GCC unroll 4
        for (int h = 0; h < HS; h++) {
            float s = sum(acc[h]);
            for (int64_t l = d; l < dim; l++) s += q[h * dim + l] * to_float(k[l]);
            scores[h][i] = s;
        }
    }
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
AD_INLINE void attend_run(const ad_attention *p, const float *q, const T *const *keys,
                          const T *const *values, int64_t run, float *greatest, float *total,
                          float *acc) {
    const int64_t vd = p->value_dim;
    float scores[HS][RUN];
    score<T, HS>(q, p->key_dim, keys, run, scores);
    for (int h = 0; h < HS; h++) {
        if (p->softcap > 0)
            for (int64_t i = 0; i < run; i++)
                scores[h][i] = p->softcap * tanhf(scores[h][i] / p->softcap);
        float top = greatest[h];
        for (int64_t i = 0; i < run; i++) top = scores[h][i] > top ? scores[h][i] : top;
        for (int64_t i = run; i < RUN; i++) scores[h][i] = -INFINITY;
        // A NaN score is never the greatest, but its weight is NaN and so is the whole row.
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
            for (int64_t d = 0; d < vd; d++) acc[h * vd + d] *= decay;
    }
    int64_t d = 0;
    for (; d + 4 * VL <= vd; d += 4 * VL) mix<T, HS, 4>(scores, values, d, run, acc + d, vd);
    for (; d + VL <= vd; d += VL) mix<T, HS, 1>(scores, values, d, run, acc + d, vd);
    for (; d < vd; d++)
        for (int h = 0; h < HS; h++)
            for (int64_t i = 0; i < run; i++)
                acc[h * vd + d] += scores[h][i] * to_float(values[i][d]);
}

// Attends the query heads of kv heads [first, last) to tokens [from, to). Record (kv head - first)
// of `records`, `apart` floats apart, gets for each of its query heads the greatest score, the sum
// of weights, and the weighted sum of values [value_dim], unscaled. Kv heads take turns over each
// run of tokens, so that blocks are read in the order in which they lie in memory.
template <typename T>
static void attend(const ad_attention *p, int64_t sequence, int64_t first, int64_t last,
                   int64_t from, int64_t to, float *q, float *records, int64_t apart) {
    const int64_t share = p->heads / p->kv_heads, kd = p->key_dim, vd = p->value_dim;
    const int64_t size = p->block_size, *table = p->tables + sequence * p->table_stride;
    for (int64_t g = 0; g < (last - first) * share; g++) {
        const T *row = (const T *)p->q + sequence * p->q_token_stride +
                       (first * share + g) * p->q_head_stride;
        for (int64_t d = 0; d < kd; d++) q[g * kd + d] = to_float(row[d]) * p->scale;
    }
    for (int64_t kv = first; kv < last; kv++) {
        float *record = records + (kv - first) * apart;
        for (int64_t i = 0; i < share * (2 + vd); i++) record[i] = i < share ? -INFINITY : 0.0f;
    }
    const T *keys[RUN], *values[RUN];
    for (int64_t t = from; t < to; t += RUN) {
        const int64_t run = to - t < RUN ? to - t : RUN;
        // What the next run reads is asked for now: blocks lie anywhere, and memory is far.
        const int64_t ahead = to - t - run < RUN ? to - t - run : RUN;
        for (int64_t kv = first; kv < last; kv++) {
            for (int64_t i = 0; i < run + ahead; i++) {
                const int64_t row = (table[(t + i) / size] * size + (t + i) % size) * p->kv_heads + kv;
                const T *k = (const T *)p->keys + row * kd, *v = (const T *)p->values + row * vd;
                if (i < run)
                    keys[i] = k, values[i] = v;
                else
                    fetch(k, kd), fetch(v, vd);
            }
            float *record = records + (kv - first) * apart;
            for (int64_t g = 0; g < share; g += HEADS) {
                const float *qs = q + ((kv - first) * share + g) * kd;
                float *top = record + g, *sums = record + share + g;
                float *out = record + 2 * share + g * vd;
                switch (share - g < HEADS ? share - g : HEADS) {
                    case 1: attend_run<T, 1>(p, qs, keys, values, run, top, sums, out); break;
                    case 2: attend_run<T, 2>(p, qs, keys, values, run, top, sums, out); break;
                    case 3: attend_run<T, 3>(p, qs, keys, values, run, top, sums, out); break;
                    default: attend_run<T, HEADS>(p, qs, keys, values, run, top, sums, out);
                }
            }
        }
    }
}

template <typename T>
static void paged_attention_of(const ad_attention *p) {
    static thread_local Scratch<float> partial;  // of the calling thread, for all
    const int64_t share = p->heads / p->kv_heads, kd = p->key_dim, vd = p->value_dim;
    int64_t longest = 1;
    for (int64_t s = 0; s < p->sequences; s++)
        longest = p->contexts[s] > longest ? p->contexts[s] : longest;
    const int64_t threads = omp_get_max_threads();
    const int64_t groups = p->sequences >= 4 * threads ? 1 : p->kv_heads;  // tasks of a sequence
    const int64_t together = p->kv_heads / groups;
    int64_t parts = (longest + PART - 1) / PART;
    if (p->sequences * groups >= 4 * threads) parts = 1;
    if (parts > threads) parts = threads;
    const int64_t record = share * (2 + vd);  // of a kv head: greatest, total, sums
    float *records = partial.room(p->sequences * p->kv_heads * parts * record);
#pragma omp parallel
    {
        static thread_local Scratch<float> query;
        float *q = query.room(together * share * kd + parts), *weight = q + together * share * kd;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < p->sequences * groups * parts; i++) {
            const int64_t s = i / (groups * parts), part = i % parts;
            const int64_t kv = i / parts % groups * together, context = p->contexts[s];
            const int64_t first = p->window && context > p->window ? context - p->window : 0;
            const int64_t size = (context - first + parts - 1) / parts;
            int64_t from = first + part * size, to = from + size < context ? from + size : context;
            if (from > to) from = to;
            float *r = records + ((s * p->kv_heads + kv) * parts + part) * record;
            attend<T>(p, s, kv, kv + together, from, to, q, r, parts * record);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p->sequences * p->heads; i++) {
            const int64_t head = i % p->heads, g = head % share;
            const float *r = records + i / share * parts * record;
            float top = p->sinks ? p->sinks[head] : -INFINITY;
            for (int64_t n = 0; n < parts; n++)
                top = r[n * record + g] > top ? r[n * record + g] : top;
            float total = p->sinks ? expf(p->sinks[head] - top) : 0.0f;
            for (int64_t n = 0; n < parts; n++) {
                weight[n] = expf(r[n * record + g] - top);
                total += r[n * record + share + g] * weight[n];
            }
            T *out = (T *)p->out + i * vd;
            for (int64_t d = 0; d < vd; d++) {
                float sum_of = 0;
                for (int64_t n = 0; n < parts; n++)
                    sum_of += r[n * record + 2 * share + g * vd + d] * weight[n];
                store1(out + d, sum_of / total);
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
