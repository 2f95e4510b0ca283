// cvt: between integers, float32 and the halves.
#include <math.h>
#include "machine.h"

#define CONVERT(name, A_T, D_T, expression)                                        \
  static int name(warp *w, const insn *i, u32 m) {                                 \
    const A_T *A = (const A_T *)r32(w, src(i, 0));                                 \
    D_T *D = (D_T *)r32(w, dst(i, 0));                                             \
    EACH_LANE(l, m) { A_T a = A[l]; D[l] = (D_T)(expression); }                    \
    return NEXT;                                                                   \
  }
// Between integers: the source's width and sign, then the destination's.
CONVERT(u8_to_32, u32, u32, (u8)a) CONVERT(s8_to_32, u32, u32, (i32)(int8_t)a)
CONVERT(u16_to_32, u32, u32, (u16)a) CONVERT(s16_to_32, u32, u32, (i32)(int16_t)a)
CONVERT(b32_to_16, u32, u32, (u16)a) CONVERT(b32_to_8, u32, u32, (u8)a)
CONVERT(s8_to_16, u32, u32, (u16)(int16_t)(int8_t)a)
CONVERT(u16_to_64, u32, u64, (u16)a) CONVERT(s16_to_64, u32, u64, (i64)(int16_t)a)
CONVERT(u32_to_64, u32, u64, a) CONVERT(s32_to_64, u32, u64, (i64)(i32)a)
CONVERT(low_u32_to_64, u64, u64, (u32)a) CONVERT(low_s32_to_64, u64, u64, (i64)(i32)a)
CONVERT(b64_to_32, u64, u32, a) CONVERT(b64_to_16, u64, u32, (u16)a)
CONVERT(s32_to_f32, u32, u32, as_bits((float)(i32)a)) CONVERT(u32_to_f32, u32, u32, as_bits((float)a))
CONVERT(s16_to_f32, u32, u32, as_bits((float)(int16_t)a)) CONVERT(u16_to_f32, u32, u32, as_bits((float)(u16)a))
CONVERT(u8_to_f32, u32, u32, as_bits((float)(u8)a)) CONVERT(s8_to_f32, u32, u32, as_bits((float)(int8_t)a))
CONVERT(s64_to_f32, u64, u32, as_bits((float)(i64)a)) CONVERT(u64_to_f32, u64, u32, as_bits((float)a))

static float to_integer(float f, i64 mode) {
  return mode == 0 ? rintf(f) : mode == 1 ? truncf(f) : mode == 2 ? floorf(f) : ceilf(f);
}
static i32 clamp_s32(float f) { return f != f ? 0 : f >= 2147483648.0f ? INT32_MAX : f <= -2147483648.0f ? INT32_MIN : (i32)f; }
static u32 clamp_u32(float f) { return f != f || f <= 0 ? 0 : f >= 4294967296.0f ? UINT32_MAX : (u32)f; }
CONVERT(f32_to_s32, u32, u32, clamp_s32(to_integer(as_float(a), i->imm)))
CONVERT(f32_to_u32, u32, u32, clamp_u32(to_integer(as_float(a), i->imm)))
CONVERT(f16_to_f32, u32, u32, as_bits(half_to_float((u16)a)))
CONVERT(bf16_to_f32, u32, u32, as_bits(bf16_to_float((u16)a)))
CONVERT(f32_to_f16, u32, u32, float_to_half(as_float(a)))
CONVERT(f32_to_bf16, u32, u32, float_to_bf16(as_float(a)))

#define PACK(name, narrow)                                                         \
  static int name(warp *w, const insn *i, u32 m) {                                 \
    const u32 *high = r32(w, src(i, 0)), *low = r32(w, src(i, 1));                 \
    u32 *D = r32(w, dst(i, 0));                                                    \
    EACH_LANE(l, m) D[l] = (u32)narrow(as_float(high[l])) << 16 | narrow(as_float(low[l])); \
    return NEXT;                                                                   \
  }
PACK(pack_f16, float_to_half)
PACK(pack_bf16, float_to_bf16)

// mov with a vector on one side: the parts of a register, or a register of parts; imm is the width of a part.
static u64 part(const warp *w, i32 unit, int l, i64 bits) { return bits == 64 ? r64(w, unit)[l] : r32(w, unit)[l]; }
static int join(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    u64 value = 0;
    for (int k = 0; k < i->num_src; k++)
      value |= (part(w, src(i, k), l, i->imm) & (i->imm == 32 ? 0xffffffff : i->imm == 16 ? 0xffff : 0xff)) << (k * i->imm);
    if (i->imm2 == 64) r64(w, dst(i, 0))[l] = value;
    else r32(w, dst(i, 0))[l] = (u32)value;
  }
  return NEXT;
}
static int split(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    u64 value = part(w, src(i, 0), l, i->imm2);
    for (int k = 0; k < i->num_dst; k++)
      if (dst(i, k) >= 0) r32(w, dst(i, k))[l] = (u32)(value >> (k * i->imm) & (i->imm == 32 ? 0xffffffff : i->imm == 16 ? 0xffff : 0xff));
  }
  return NEXT;
}

TABLE(convert_ops) = {
    {"cvt.u8.32", u8_to_32}, {"cvt.s8.32", s8_to_32}, {"cvt.u16.32", u16_to_32}, {"cvt.s16.32", s16_to_32},
    {"cvt.b32.16", b32_to_16}, {"cvt.b32.8", b32_to_8}, {"cvt.s8.16", s8_to_16}, {"cvt.u16.64", u16_to_64},
    {"cvt.s16.64", s16_to_64}, {"cvt.u32.64", u32_to_64}, {"cvt.s32.64", s32_to_64}, {"cvt.b64.32", b64_to_32},
    {"cvt.b64.16", b64_to_16}, {"cvt.low.u32.64", low_u32_to_64}, {"cvt.low.s32.64", low_s32_to_64}, {"cvt.s32.f32", s32_to_f32}, {"cvt.u32.f32", u32_to_f32}, {"cvt.s16.f32", s16_to_f32},
    {"cvt.u16.f32", u16_to_f32}, {"cvt.u8.f32", u8_to_f32}, {"cvt.s8.f32", s8_to_f32}, {"cvt.s64.f32", s64_to_f32},
    {"cvt.u64.f32", u64_to_f32}, {"cvt.f32.s32", f32_to_s32}, {"cvt.f32.u32", f32_to_u32}, {"cvt.f16.f32", f16_to_f32},
    {"cvt.bf16.f32", bf16_to_f32}, {"cvt.f32.f16", f32_to_f16}, {"cvt.f32.bf16", f32_to_bf16},
    {"cvt.f32.f16x2", pack_f16}, {"cvt.f32.bf16x2", pack_bf16}, {"mov.join", join}, {"mov.split", split},
    {NULL, NULL}};
