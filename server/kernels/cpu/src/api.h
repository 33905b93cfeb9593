// The C interface of the native CPU kernels, as server/kernels/cpu/native.py calls it.
//
// Plain C ABI over raw pointers: no Python, no torch, so the library builds anywhere and serves
// every version of either. Callers guarantee shapes and that pointers stay valid for the call.
// Element types: 0 float32, 1 bfloat16. Arithmetic and sums are float32 throughout.
#pragma once

#include <stdint.h>

enum { AD_FLOAT32 = 0, AD_BFLOAT16 = 1 };

// Rows `start` up to `start + count` of a step, which all use `slot`; its a and b begin at `row`.
struct ad_segment {
    int64_t start, count, slot, row;
};

// One module's stacked adapters and where its update goes.
struct ad_lora_member {
    const void *a;         // [rows, in], of which each slot has some
    const void *b;         // [rows, out], the adapter's scale folded in
    const int32_t *ranks;  // [slots]; 0: the slot's adapter leaves this module alone
    void *out;             // [tokens, out], rows `out_stride` elements apart; added into
    int64_t out_features, out_stride;
};

struct ad_lora {
    int32_t dtype, members;
    int64_t segments, in_features, x_stride;
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

// A linear module, or several that read one input, side by side.
struct ad_linear {
    int32_t dtype;
    int64_t in, out;
    const void *packed;   // as `pack` or `quantize` of the same instruction set wrote it
    const float *bias;    // [out rounded up to whole panels], or null
    const float *scales;  // as `quantize` wrote them, with the int8 of `packed`; null: `pack` did
};

// RMS norm over rows; without a weight there is none. plus_one: times 1 + weight, as Gemma has it.
struct ad_norm {
    const void *weight;
    float eps;
    int32_t plus_one;
};

// What adapters of one kind add to the output of modules that read one input.
struct ad_hook {
    // x [rows, in] and out [rows, all modules' outputs side by side], rows their stride apart.
    void (*run)(const void *context, const void *x, int64_t x_stride, void *out,
                int64_t out_stride, int64_t rows);
    const void *context;
};

// lora_add's as a hook: `out` of its members is counted in numbers from the row's begin.
struct ad_lora_hook {
    ad_lora job;  // without segments and x
    const int64_t *columns;  // [members] where each member's outputs begin
    const struct ad_segments *step;
};

// The step's segments that have an adapter; all hooks of a kind share them.
struct ad_segments {
    int64_t count;
    const ad_segment *first;
};

struct ad_group {
    ad_linear linear;
    int64_t hooks;
    const ad_hook *hook;
};

enum { AD_SILU = 0, AD_GELU_TANH = 1 };

// A decoder layer: hidden += after(attention(before(hidden))), then the same with the MLP.
struct ad_layer {
    int32_t dtype, activation, norm_whole_rows;  // of queries and keys: over all heads at once
    int64_t heads, kv_heads, key_dim, value_dim;
    int64_t window;
    float scale, softcap;
    const float *sinks;
    ad_norm before_attention, query_norm, key_norm, after_attention, before_mlp, after_mlp;
    ad_group qkv, o, gate_up, down;
    void *keys, *values;  // the layer's paged cache
};

// What layers need of one step.
struct ad_step {
    int64_t rows, rotary;  // numbers of a head that are rotated
    const void *cos, *sin;  // [rows, rotary]
    const int64_t *places;  // [rows], block · block_size + offset
    ad_attention attention;  // what does not depend on the layer
};

// Kernels of one instruction set.
struct ad_kernels {
    const char *name;
    void (*lora_add)(const ad_lora *);
    void (*paged_attention)(const ad_attention *);
    void (*kv_write)(const ad_kv_write *);
    void (*rms_norm)(int32_t dtype, const void *x, const void *weight, void *out, int64_t rows,
                     int64_t width, float eps, int32_t plus_one);
    void (*gated)(int32_t dtype, int32_t activation, const void *gate, const void *up, void *out,
                  int64_t rows, int64_t width, int64_t gate_stride, int64_t up_stride);
    // How many numbers a packed weight [out, in] has, and the packing of one.
    int64_t (*packed_numbers)(int32_t dtype, int64_t out, int64_t in);
    void (*pack)(int32_t dtype, const void *weight, void *packed, int64_t out, int64_t in);
    // The same from a weight of dtype to int8, each output with a scale of its own: a weight is its
    // int8 times the scale. scales [out rounded up to whole panels], of which [out] are written.
    void (*quantize)(int32_t dtype, const void *weight, int8_t *packed, float *scales, int64_t out,
                     int64_t in);
    void (*linear)(const ad_linear *, const void *x, int64_t x_stride, void *out,
                   int64_t out_stride, int64_t rows);
    int64_t panel;  // outputs of a panel
    void (*lora_hook)(const void *, const void *, int64_t, void *, int64_t, int64_t);
    void (*layer)(const ad_layer *, const ad_step *, void *hidden);  // [rows, width], dense
};
