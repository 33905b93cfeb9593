// Vectors of floats of the width that the including file was compiled for, by GCC's vector
// extensions: the same source serves AVX2, AVX-512 and NEON. Included inside a namespace.

static constexpr int VL = AD_VECTOR_BYTES / 4;
typedef float vf __attribute__((vector_size(AD_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(AD_VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(AD_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(AD_VECTOR_BYTES / 2)));
typedef int8_t vb __attribute__((vector_size(AD_VECTOR_BYTES / 4)));

struct bf16 {
    uint16_t bits;
};

#define AD_INLINE static inline __attribute__((always_inline))
#define AD_LAMBDA __attribute__((always_inline))

AD_INLINE float to_float(float x) { return x; }
AD_INLINE float to_float(bf16 x) {
    uint32_t u = (uint32_t)x.bits << 16;
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}

AD_INLINE uint32_t bits_of(float f) {
    uint32_t u;
    __builtin_memcpy(&u, &f, 4);
    return u;
}

// Round to nearest, ties to even, as torch does; a NaN stays one.
AD_INLINE uint16_t bf16_bits(float f) {
    uint32_t u;
    __builtin_memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
AD_INLINE void store1(float *p, float f) { *p = f; }
AD_INLINE void store1(bf16 *p, float f) { p->bits = bf16_bits(f); }
AD_INLINE float rounded(float f, const float *) { return f; }
AD_INLINE float rounded(float f, const bf16 *) { return to_float(bf16{bf16_bits(f)}); }

AD_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

AD_INLINE vf splat(float f) { return f - (vf){}; }

AD_INLINE vf load(const float *p) {
    vf v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
// By name where it has one: of __builtin_convertvector, GCC makes four instructions.
AD_INLINE vf load(const bf16 *p) {
#if defined(AD_AVX512)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif AD_VECTOR_BYTES == 32
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
AD_INLINE vf load(const int8_t *p) {
#if defined(AD_AVX512)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif AD_VECTOR_BYTES == 32
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    vb b;
    __builtin_memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}
AD_INLINE vh bf16_bits(vf v) {
#ifdef AD_AVX512_BF16
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#endif
    vu u = (vu)v;
    vu r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vi nan = (u & 0x7fffffffu) > 0x7f800000u;
    return __builtin_convertvector((r & (vu)~nan) | ((vu)nan & 0x7fc0u), vh);
}
AD_INLINE void store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
AD_INLINE void store(bf16 *p, vf v) {
    vh h = bf16_bits(v);
    __builtin_memcpy(p, &h, sizeof h);
}
AD_INLINE vf rounded(vf v, const float *) { return v; }
AD_INLINE vf rounded(vf v, const bf16 *) {
    return (vf)(__builtin_convertvector(bf16_bits(v), vu) << 16);
}

AD_INLINE float sum(vf v) {
#ifdef AD_AVX512
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < VL; i++) s += v[i];
    return s;
#endif
}
// The sums of four vectors.
AD_INLINE void sums(const vf (&v)[4], float *out) {
#ifdef AD_AVX512
    const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = (__m512)_mm512_add_ps(
        (__m512)_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd),
        (__m512)_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    __builtin_memcpy(out, &four, sizeof four);
#else
    for (int i = 0; i < 4; i++) out[i] = sum(v[i]);
#endif
}
AD_INLINE vf select(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
AD_INLINE vf vmax(vf a, vf b) { return select(a > b, a, b); }
AD_INLINE vf vmin(vf a, vf b) { return select(a < b, a, b); }

// e^x to about one unit in the last place; 0 below -87, and e^88 above 88. NaN stays NaN.
// Cody and Waite's reduction and the Cephes polynomial of expf.
AD_INLINE vf vexp(vf x) {
    vi nan = x != x;
    vf c = vmin(vmax(x, splat(-87.33f)), splat(88.37f));
    vf t = c * 1.44269504088896341f + 12582912.0f;  // 1.5 · 2^23: rounds to an integer
    vf n = t - 12582912.0f;
    vf r = c - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi e = (__builtin_convertvector(n, vi) + 127) << 23;
    vf y = p * (vf)e;
    y = select(x < -87.33f, splat(0.0f), y);
    return select(nan, x, y);
}
