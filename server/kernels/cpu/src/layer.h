// A decoder layer of Llama's family in one call: what lies between two layers' hidden states, without
// a way back to Python in between. Norms before, after or around attention and MLP; q, k and v side
// by side, and gate and up; rotary embedding; anything else keeps its own forward (native_layer.py
// decides). Roundings fall where transformers' eager code has them. Included inside a namespace,
// after attention.h, gemm.h, lora.h and pointwise.h.

// Rotates the first `rotary` numbers of each head in place, first half against second.
// Source: transformers, apply_rotary_pos_emb of modeling_llama.py.
template <typename T>
AD_INLINE void rotate(T *head, const T *cos, const T *sin, int64_t rotary) {
    const T *tag = nullptr;
    const int64_t half = rotary / 2;
    int64_t d = 0;
    for (; d + VL <= half; d += VL) {
        vf a = load(head + d), b = load(head + half + d);
        vf first = rounded(a * load(cos + d), tag) + rounded(-b * load(sin + d), tag);
        vf second = rounded(b * load(cos + half + d), tag) + rounded(a * load(sin + half + d), tag);
        store(head + d, first);
        store(head + half + d, second);
    }
    for (; d < half; d++) {
        float a = to_float(head[d]), b = to_float(head[half + d]);
        float first = rounded(a * to_float(cos[d]), tag) + rounded(-b * to_float(sin[d]), tag);
        float second = rounded(b * to_float(cos[half + d]), tag) +
                       rounded(a * to_float(sin[half + d]), tag);
        store1(head + d, first);
        store1(head + half + d, second);
    }
}

// hidden += update, rounded.
template <typename T>
static void add_rows(T *hidden, const T *update, int64_t count) {
#pragma omp parallel for schedule(static) if (count >= PARALLEL_ELEMENTS)
    for (int64_t at = 0; at < count; at += 1024) {
        const int64_t end = count - at < 1024 ? count : at + 1024;
        int64_t d = at;
        for (; d + VL <= end; d += VL) store(hidden + d, load(hidden + d) + load(update + d));
        for (; d < end; d++) store1(hidden + d, to_float(hidden[d]) + to_float(update[d]));
    }
}

template <typename T>
static void normed(const ad_norm &norm, const T *x, T *out, int64_t rows, int64_t width) {
    rms_norm_of<T>(x, (const T *)norm.weight, out, rows, width, norm.eps, norm.plus_one);
}

// What the modules give, and what adapters add to it.
template <typename T>
static void group_of(const ad_group &group, const T *x, int64_t x_stride, T *out, int64_t rows) {
    linear_of<T>(&group.linear, x, x_stride, out, group.linear.out, rows);
    for (int64_t i = 0; i < group.hooks; i++)
        group.hook[i].run(group.hook[i].context, x, x_stride, out, group.linear.out, rows);
}

// Norms and rotates a step's queries and keys, and puts keys and values into the cache.
template <typename T>
static void place_heads(const ad_layer *l, const ad_step *s, T *qkv) {
    const int64_t kd = l->key_dim, vd = l->value_dim, width = l->qkv.linear.out;
    const int64_t queries = l->heads * kd, keys = l->kv_heads * kd;
#pragma omp parallel for schedule(static) if (s->rows * width >= PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < s->rows; r++) {
        T *q = qkv + r * width, *k = q + queries, *v = k + keys;
        if (l->query_norm.weight) {
            const bool whole = l->norm_whole_rows;
            normed<T>(l->query_norm, q, q, whole ? 1 : l->heads, whole ? queries : kd);
            normed<T>(l->key_norm, k, k, whole ? 1 : l->kv_heads, whole ? keys : kd);
        }
        const T *cos = (const T *)s->cos + r * s->rotary, *sin = (const T *)s->sin + r * s->rotary;
        for (int64_t h = 0; h < l->heads + l->kv_heads; h++) rotate(q + h * kd, cos, sin, s->rotary);
        const int64_t place = s->places[r];
        memcpy((T *)l->keys + place * keys, k, (size_t)keys * sizeof(T));
        memcpy((T *)l->values + place * l->kv_heads * vd, v, (size_t)(l->kv_heads * vd) * sizeof(T));
    }
}

template <typename T>
static void layer_of(const ad_layer *l, const ad_step *s, T *hidden) {
    static thread_local Scratch<T> scratch;
    const int64_t rows = s->rows, width = l->down.linear.out;
    const int64_t attended = l->heads * l->value_dim, inner = l->down.linear.in;
    const int64_t wide = l->qkv.linear.out > l->gate_up.linear.out ? l->qkv.linear.out
                                                                   : l->gate_up.linear.out;
    T *out = scratch.room(rows * (width + wide + (attended > inner ? attended : inner)));
    T *fused = out + rows * width, *narrow = fused + rows * wide;

    const T *x = hidden;
    if (l->before_attention.weight) normed<T>(l->before_attention, hidden, out, rows, width), x = out;
    group_of<T>(l->qkv, x, width, fused, rows);
    place_heads<T>(l, s, fused);
    ad_attention attention = s->attention;
    attention.dtype = l->dtype;
    attention.heads = l->heads, attention.kv_heads = l->kv_heads;
    attention.key_dim = l->key_dim, attention.value_dim = l->value_dim;
    attention.q_token_stride = l->qkv.linear.out, attention.q_head_stride = l->key_dim;
    attention.window = l->window, attention.scale = l->scale, attention.softcap = l->softcap;
    attention.q = fused, attention.keys = l->keys, attention.values = l->values;
    attention.sinks = l->sinks, attention.out = narrow;
    paged_attention_of<T>(&attention);
    group_of<T>(l->o, narrow, attended, out, rows);
    if (l->after_attention.weight) normed<T>(l->after_attention, out, out, rows, width);
    add_rows<T>(hidden, out, rows * width);

    x = hidden;
    if (l->before_mlp.weight) normed<T>(l->before_mlp, hidden, out, rows, width), x = out;
    group_of<T>(l->gate_up, x, width, fused, rows);
    gated_of<T>(l->activation, fused, fused + inner, narrow, rows, inner, 2 * inner, 2 * inner);
    group_of<T>(l->down, narrow, inner, out, rows);
    if (l->after_mlp.weight) normed<T>(l->after_mlp, out, out, rows, width);
    add_rows<T>(hidden, out, rows * width);
}

static void layer(const ad_layer *l, const ad_step *s, void *hidden) {
    if (l->dtype == AD_BFLOAT16)
        layer_of<bf16>(l, s, (bf16 *)hidden);
    else
        layer_of<float>(l, s, (float *)hidden);
}
