// Attention of one query row per sequence, straight from the paged cache: nothing is gathered.
//
// Online softmax over runs of tokens (Milakov and Gimelshein, arXiv:1805.02867); the query heads
// that share keys are done together, so each key and value is read once. Long contexts of few
// sequences are cut into parts, whose partial sums are merged (flash-decoding). Included inside a
// namespace, after vec.h.

static constexpr int RUN = 64;           // tokens whose scores are held at once
static constexpr int64_t PART = 512;     // tokens of a part, at least

template <typename T>
AD_INLINE float dot(const float *q, const T *k, int64_t dim) {
    vf s0 = {}, s1 = {};
    int64_t d = 0;
    for (; d + 2 * VL <= dim; d += 2 * VL) {
        s0 += load(q + d) * load(k + d);
        s1 += load(q + d + VL) * load(k + d + VL);
    }
    for (; d + VL <= dim; d += VL) s0 += load(q + d) * load(k + d);
    float s = sum(s0 + s1);
    for (; d < dim; d++) s += q[d] * to_float(k[d]);
    return s;
}

// acc[0 … dim) += w · v
template <typename T>
AD_INLINE void add_scaled(float *acc, float w, const T *v, int64_t dim) {
    int64_t d = 0;
    for (; d + VL <= dim; d += VL) store(acc + d, load(acc + d) + w * load(v + d));
    for (; d < dim; d++) acc[d] += w * to_float(v[d]);
}

// Attends the `share` query heads of one kv head to tokens [from, to). Leaves for each head its
// greatest score, the sum of its weights, and the weighted sum of values [value_dim], unscaled.
template <typename T>
static void attend(const ad_attention *p, int64_t sequence, int64_t kv_head, int64_t from,
                   int64_t to, float *q, float *greatest, float *total, float *acc) {
    const int64_t share = p->heads / p->kv_heads, kd = p->key_dim, vd = p->value_dim;
    const int64_t *table = p->tables + sequence * p->table_stride;
    for (int64_t g = 0; g < share; g++) {
        const T *row = (const T *)p->q + sequence * p->q_token_stride +
                       (kv_head * share + g) * p->q_head_stride;
        for (int64_t d = 0; d < kd; d++) q[g * kd + d] = to_float(row[d]) * p->scale;
        greatest[g] = -INFINITY;
        total[g] = 0;
    }
    for (int64_t i = 0; i < share * vd; i++) acc[i] = 0;
    float scores[RUN];
    for (int64_t t0 = from; t0 < to; t0 += RUN) {
        const int64_t run = to - t0 < RUN ? to - t0 : RUN;
        for (int64_t g = 0; g < share; g++) {
            for (int64_t i = 0; i < run; i++) {
                const int64_t t = t0 + i;
                const int64_t place = table[t / p->block_size] * p->block_size + t % p->block_size;
                const T *k = (const T *)p->keys + (place * p->kv_heads + kv_head) * kd;
                scores[i] = dot(q + g * kd, k, kd);
            }
            if (p->softcap > 0)
                for (int64_t i = 0; i < run; i++)
                    scores[i] = p->softcap * tanhf(scores[i] / p->softcap);
            float top = greatest[g];
            for (int64_t i = 0; i < run; i++) top = scores[i] > top ? scores[i] : top;
            for (int64_t i = run; i < RUN; i++) scores[i] = -INFINITY;
            // A NaN score is never the greatest, but its weight is NaN and so is the whole row.
            const float decay = expf(greatest[g] - top);
            vf sums = {};
            for (int64_t i = 0; i < RUN; i += VL) {
                vf w = vexp(load(scores + i) - top);
                store(scores + i, w);
                sums += w;
            }
            greatest[g] = top;
            total[g] = total[g] * decay + sum(sums);
            float *sum_of = acc + g * vd;
            if (decay != 1.0f)
                for (int64_t d = 0; d < vd; d++) sum_of[d] *= decay;
            for (int64_t i = 0; i < run; i++) {
                const int64_t t = t0 + i;
                const int64_t place = table[t / p->block_size] * p->block_size + t % p->block_size;
                const T *v = (const T *)p->values + (place * p->kv_heads + kv_head) * vd;
                add_scaled(sum_of, scores[i], v, vd);
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
    const int64_t pairs = p->sequences * p->kv_heads, threads = omp_get_max_threads();
    int64_t parts = (longest + PART - 1) / PART;
    if (pairs >= 4 * threads || parts < 1) parts = 1;
    if (parts > threads) parts = threads;
    const int64_t record = share * (2 + vd);  // greatest, total, sums
    float *records = partial.room(pairs * parts * record);
#pragma omp parallel
    {
        static thread_local Scratch<float> query;
        float *q = query.room(share * kd);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < pairs * parts; i++) {
            const int64_t pair = i / parts, part = i % parts;
            const int64_t s = pair / p->kv_heads, context = p->contexts[s];
            const int64_t first = p->window && context > p->window ? context - p->window : 0;
            const int64_t size = (context - first + parts - 1) / parts;
            int64_t from = first + part * size, to = from + size < context ? from + size : context;
            if (from > to) from = to;
            float *r = records + i * record;
            attend<T>(p, s, pair % p->kv_heads, from, to, q, r, r + share, r + 2 * share);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pairs * share; i++) {
            const int64_t pair = i / share, g = i % share;
            const int64_t s = pair / p->kv_heads, head = pair % p->kv_heads * share + g;
            const float *r = records + pair * parts * record;
            float top = p->sinks ? p->sinks[head] : -INFINITY;
            for (int64_t n = 0; n < parts; n++) top = r[n * record + g] > top ? r[n * record + g] : top;
            float total = p->sinks ? expf(p->sinks[head] - top) : 0.0f;
            for (int64_t n = 0; n < parts; n++)
                total += r[n * record + share + g] * expf(r[n * record + g] - top);
            T *out = (T *)p->out + (s * p->heads + head) * vd;
            for (int64_t d = 0; d < vd; d++) {
                float sum_of = 0;
                for (int64_t n = 0; n < parts; n++)
                    sum_of += r[n * record + 2 * share + g * vd + d] * expf(r[n * record + g] - top);
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
