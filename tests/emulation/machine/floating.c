// float32 and packed pairs of it, mixed-precision fma, and the approximations of the special function unit.
#include <math.h>
#include "machine.h"

static inline float flushed(float f, u32 flags) {
  return flags & F_FTZ && fabsf(f) < 1.17549435e-38f ? copysignf(0.0f, f) : f;
}
static inline u32 result(float f, u32 flags) {
  f = flushed(f, flags);
  return f != f ? 0x7fffffff : as_bits(f);  // PTX: every NaN of float32 arithmetic is this one
}
#define FLOATS(k) const u32 *S##k = r32(w, src(i, k))
#define OP1(name, expression)                                                                       \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    FLOATS(0); u32 *D = r32(w, dst(i, 0)), g = i->flags;                                            \
    EACH_LANE(l, m) { float a = flushed(as_float(S0[l]), g); D[l] = result(expression, g); }        \
    return NEXT;                                                                                    \
  }
#define OP2(name, expression)                                                                       \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    FLOATS(0); FLOATS(1); u32 *D = r32(w, dst(i, 0)), g = i->flags;                                 \
    EACH_LANE(l, m) {                                                                               \
      float a = flushed(as_float(S0[l]), g), b = flushed(as_float(S1[l]), g);                       \
      D[l] = result(expression, g);                                                                 \
    }                                                                                               \
    return NEXT;                                                                                    \
  }
static inline float larger(float a, float b) { return a == b ? (signbit(a) ? b : a) : fmaxf(a, b); }  // +0 above -0
static inline float smaller(float a, float b) { return a == b ? (signbit(a) ? a : b) : fminf(a, b); }
OP2(add, a + b) OP2(sub, a - b) OP2(mul, a * b) OP2(divide, a / b)
#define EXTREME(name, of_two)                                                                       \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    FLOATS(0); FLOATS(1); const u32 *S2 = i->num_src > 2 ? r32(w, src(i, 2)) : S1;                  \
    u32 *D = r32(w, dst(i, 0)), g = i->flags;                                                       \
    EACH_LANE(l, m) {                                                                               \
      float a = flushed(as_float(S0[l]), g), b = flushed(as_float(S1[l]), g);                       \
      a = of_two(a, b), b = flushed(as_float(S2[l]), g);                                            \
      D[l] = result(of_two(a, b), g);                                                               \
    }                                                                                               \
    return NEXT;                                                                                    \
  }
static inline float larger_or_nan(float a, float b) { return a != a || b != b ? NAN : larger(a, b); }
static inline float smaller_or_nan(float a, float b) { return a != a || b != b ? NAN : smaller(a, b); }
EXTREME(maximum, larger) EXTREME(minimum, smaller) EXTREME(max_nan, larger_or_nan) EXTREME(min_nan, smaller_or_nan)
OP1(ex2, exp2f(a)) OP1(lg2, (float)log2((double)a)) OP1(rcp, 1.0f / a) OP1(square_root, sqrtf(a))
OP1(rsqrt, (float)(1.0 / sqrt((double)a))) OP1(tanh_approx, tanhf(a))
OP1(rint_f, rintf(a)) OP1(floor_f, floorf(a)) OP1(ceil_f, ceilf(a)) OP1(trunc_f, truncf(a))

static int fma3(warp *w, const insn *i, u32 m) {
  FLOATS(0); FLOATS(1); FLOATS(2);
  u32 *D = r32(w, dst(i, 0)), g = i->flags;
  EACH_LANE(l, m) {
    float a = flushed(as_float(S0[l]), g), b = flushed(as_float(S1[l]), g), c = flushed(as_float(S2[l]), g);
    D[l] = result(fmaf(a, b, c), g);
  }
  return NEXT;
}

static int fma_mixed(warp *w, const insn *i, u32 m) {  // float16 or bfloat16 times such, added to float32
  FLOATS(0); FLOATS(1); FLOATS(2);
  u32 *D = r32(w, dst(i, 0));
  int bf16 = (i->flags & F_BF16) != 0;
  EACH_LANE(l, m) {
    float a = bf16 ? bf16_to_float((u16)S0[l]) : half_to_float((u16)S0[l]);
    float b = bf16 ? bf16_to_float((u16)S1[l]) : half_to_float((u16)S1[l]);
    D[l] = result(fmaf(a, b, as_float(S2[l])), i->flags);
  }
  return NEXT;
}

static int negate(warp *w, const insn *i, u32 m) {
  FLOATS(0);
  u32 *D = r32(w, dst(i, 0));
  EACH_LANE(l, m) D[l] = as_bits(flushed(as_float(S0[l]), i->flags)) ^ 0x80000000;
  return NEXT;
}
static int absolute(warp *w, const insn *i, u32 m) {
  FLOATS(0);
  u32 *D = r32(w, dst(i, 0));
  EACH_LANE(l, m) D[l] = as_bits(flushed(as_float(S0[l]), i->flags)) & 0x7fffffff;
  return NEXT;
}

// Pairs: two float32 in a 64-bit register, on sm_100 and later.
#define PAIR(name, expression)                                                                      \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    const u64 *A = r64(w, src(i, 0)), *B = r64(w, src(i, 1));                                       \
    const u64 *C = i->num_src > 2 ? r64(w, src(i, 2)) : A;                                          \
    u64 *D = r64(w, dst(i, 0));                                                                     \
    EACH_LANE(l, m) {                                                                               \
      u64 both = 0;                                                                                 \
      for (int h = 0; h < 64; h += 32) {                                                            \
        float a = flushed(as_float((u32)(A[l] >> h)), i->flags), b = flushed(as_float((u32)(B[l] >> h)), i->flags); \
        float c = flushed(as_float((u32)(C[l] >> h)), i->flags); (void)c;                           \
        both |= (u64)result(expression, i->flags) << h;                                             \
      }                                                                                             \
      D[l] = both;                                                                                  \
    }                                                                                               \
    return NEXT;                                                                                    \
  }
PAIR(add_pair, a + b) PAIR(sub_pair, a - b) PAIR(mul_pair, a * b) PAIR(fma_pair, fmaf(a, b, c))

#define COMPARE(name, T, convert, op, of_nan)                                                       \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    FLOATS(0); FLOATS(1);                                                                           \
    for (int h = 0; h < i->num_dst; h++) EACH_LANE(l, m) { /* two of packed halves */               \
      float a = convert((T)(S0[l] >> 16 * h)), b = convert((T)(S1[l] >> 16 * h));                   \
      a = flushed(a, i->flags), b = flushed(b, i->flags);                                           \
      r32(w, dst(i, h))[l] = a != a || b != b ? of_nan : (a op b);                                  \
    }                                                                                               \
    return NEXT;                                                                                    \
  }
#define SET(t, T, convert)                                                                          \
  COMPARE(eq_##t, T, convert, ==, 0) COMPARE(ne_##t, T, convert, !=, 0) COMPARE(lt_##t, T, convert, <, 0)       \
  COMPARE(le_##t, T, convert, <=, 0) COMPARE(gt_##t, T, convert, >, 0) COMPARE(ge_##t, T, convert, >=, 0)       \
  COMPARE(equ_##t, T, convert, ==, 1) COMPARE(neu_##t, T, convert, !=, 1) COMPARE(ltu_##t, T, convert, <, 1)    \
  COMPARE(leu_##t, T, convert, <=, 1) COMPARE(gtu_##t, T, convert, >, 1) COMPARE(geu_##t, T, convert, >=, 1)    \
  static int nan_##t(warp *w, const insn *i, u32 m) {                                               \
    FLOATS(0); FLOATS(1); u32 *D = r32(w, dst(i, 0));                                               \
    EACH_LANE(l, m) { float a = convert((T)S0[l]), b = convert((T)S1[l]); D[l] = a != a || b != b; } \
    return NEXT;                                                                                    \
  }                                                                                                 \
  static int num_##t(warp *w, const insn *i, u32 m) {                                               \
    FLOATS(0); FLOATS(1); u32 *D = r32(w, dst(i, 0));                                               \
    EACH_LANE(l, m) { float a = convert((T)S0[l]), b = convert((T)S1[l]); D[l] = a == a && b == b; } \
    return NEXT;                                                                                    \
  }
SET(f32, u32, as_float) SET(f16, u16, half_to_float) SET(bf16, u16, bf16_to_float)

// Half precision arithmetic, rounded once: the products of two halves and their sums are exact in double or rounded right.
static inline double widen(u16 h, u32 flags) { return flags & F_BF16 ? bf16_to_float(h) : half_to_float(h); }
static inline u16 narrow(double d, u32 flags) {
  float f = (float)d;
  if ((double)f != d && f == f && !isinf(f)) {  // round to odd first, so that rounding twice is rounding once
    u32 bits = as_bits(f);
    if (fabs((double)f) > fabs(d)) bits--;
    f = as_float(bits | 1);
  }
  return flags & F_BF16 ? float_to_bf16(f) : float_to_half(f);
}
#define HALF(name, expression)                                                                      \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    FLOATS(0); FLOATS(1); const u32 *S2 = i->num_src > 2 ? r32(w, src(i, 2)) : S0;                  \
    u32 *D = r32(w, dst(i, 0)), g = i->flags, pair = (g & F_ALL) != 0;                              \
    EACH_LANE(l, m) {                                                                               \
      u32 both = 0;                                                                                 \
      for (u32 h = 0; h <= pair; h++) {                                                             \
        double a = widen((u16)(S0[l] >> 16 * h), g), b = widen((u16)(S1[l] >> 16 * h), g);          \
        double c = widen((u16)(S2[l] >> 16 * h), g); (void)c;                                       \
        both |= (u32)narrow(expression, g) << 16 * h;                                               \
      }                                                                                             \
      D[l] = both;                                                                                  \
    }                                                                                               \
    return NEXT;                                                                                    \
  }
#define SIGN(name, operation, bits)                                                                 \
  static int name(warp *w, const insn *i, u32 m) {                                                  \
    FLOATS(0);                                                                                      \
    u32 *D = r32(w, dst(i, 0)), mask = i->flags & F_ALL ? (bits) : (bits) & 0xffff;                 \
    EACH_LANE(l, m) D[l] = S0[l] operation mask;                                                    \
    return NEXT;                                                                                    \
  }
SIGN(negate_half, ^, 0x80008000u) SIGN(absolute_half, &, 0x7fff7fffu)
HALF(add_half, a + b) HALF(sub_half, a - b) HALF(mul_half, a * b) HALF(fma_half, fma(a, b, c))

#define ENTRIES(t)                                                                                              \
  {"eq." #t, eq_##t}, {"ne." #t, ne_##t}, {"lt." #t, lt_##t}, {"le." #t, le_##t}, {"gt." #t, gt_##t},            \
  {"ge." #t, ge_##t}, {"equ." #t, equ_##t}, {"neu." #t, neu_##t}, {"ltu." #t, ltu_##t}, {"leu." #t, leu_##t},    \
  {"gtu." #t, gtu_##t}, {"geu." #t, geu_##t}, {"nan." #t, nan_##t}, {"num." #t, num_##t}
TABLE(floating_ops) = {
    {"add.f32", add}, {"sub.f32", sub}, {"mul.f32", mul}, {"div.f32", divide}, {"fma.f32", fma3}, {"max.f32", maximum},
    {"min.f32", minimum}, {"max.NaN.f32", max_nan}, {"min.NaN.f32", min_nan}, {"neg.f32", negate},
    {"abs.f32", absolute}, {"ex2.f32", ex2}, {"lg2.f32", lg2}, {"rcp.f32", rcp}, {"sqrt.f32", square_root},
    {"rsqrt.f32", rsqrt}, {"tanh.f32", tanh_approx}, {"rint.f32", rint_f}, {"floor.f32", floor_f}, {"ceil.f32", ceil_f},
    {"trunc.f32", trunc_f}, {"fma.mixed", fma_mixed}, {"add.f32x2", add_pair}, {"sub.f32x2", sub_pair},
    {"mul.f32x2", mul_pair}, {"fma.f32x2", fma_pair}, {"add.half", add_half}, {"sub.half", sub_half},
    {"mul.half", mul_half}, {"fma.half", fma_half}, {"neg.half", negate_half}, {"abs.half", absolute_half},
    ENTRIES(f32), ENTRIES(f16), ENTRIES(bf16), {NULL, NULL}};
