// The C interface of the native CPU kernels, as server/kernels/cpu/native.py calls it.
//
// Plain C ABI over raw pointers: no Python, no torch, so the library builds anywhere and serves
// every version of either. Callers guarantee shapes and that pointers stay valid for the call.
// Element types: 0 float32, 1 bfloat16. Arithmetic and sums are float32 throughout.
#pragma once

#include <stdint.h>

enum { AD_FLOAT32 = 0, AD_BFLOAT16 = 1 };

// Rows `start` up to `start + count` of a step, which all use `slot`.
struct ad_segment {
    int64_t start, count, slot;
};

// One module's stacked adapters and where its update goes.
struct ad_lora_member {
    const void *a;         // [slots, max_rank, in]
    const void *b;         // [slots, max_rank, out], the adapter's scale folded in
    const int32_t *ranks;  // [slots]; 0: the slot's adapter leaves this module alone
    void *out;             // [tokens, out], rows `out_stride` elements apart; added into
    int64_t out_features, out_stride;
};

struct ad_lora {
    int32_t dtype, members;
    int64_t segments, max_rank, in_features, x_stride;
    const void *x;  // [tokens, in], rows `x_stride` elements apart
    const ad_segment *segment;
    const ad_lora_member *member;
};

// Attention of a step's chunks over the paged cache; causal, each chunk over its own sequence.
struct ad_attention {
    int32_t dtype;
    int64_t chunks, heads, kv_heads, key_dim, value_dim, block_size, table_stride;
    int64_t q_token_stride, q_head_stride;
    int64_t window;  // tokens visible, a row's own included; 0: all
    float scale, softcap;  // softcap 0: none
    const void *q;                // [rows, heads, key_dim]
    const void *keys;             // [blocks, block_size, kv_heads, key_dim]
    const void *values;           // [blocks, block_size, kv_heads, value_dim]
    const int64_t *tables;        // [chunks, table_stride]
    const int32_t *query_starts;  // [chunks + 1]
    const int64_t *contexts;      // [chunks] tokens of the sequence, the chunk's last included
    const float *sinks;           // [heads] or null
    void *out;                    // [rows, heads, value_dim]; rows of no chunk are left alone
};

struct ad_kv_write {
    int32_t dtype;
    int64_t tokens, kv_heads, key_dim, value_dim;
    int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;
    const void *k, *v;  // the step's keys and values
    void *keys, *values;
    const int64_t *places;  // [tokens], block · block_size + offset
};

// Kernels of one instruction set.
struct ad_kernels {
    const char *name;
    void (*lora_add)(const ad_lora *);
    void (*paged_attention)(const ad_attention *);
    void (*kv_write)(const ad_kv_write *);
    void (*rms_norm)(int32_t dtype, const void *x, const void *weight, void *out, int64_t rows,
                     int64_t width, float eps, int32_t plus_one);
    void (*silu_mul)(int32_t dtype, const void *gate, const void *up, void *out, int64_t rows,
                     int64_t width, int64_t gate_stride, int64_t up_stride);
};
