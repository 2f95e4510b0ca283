// Integer, logical, comparison and selection instructions.
#include "machine.h"

typedef int16_t i16;
#define LOOP(...) EACH_LANE(l, m) { __VA_ARGS__ }
// One source of type T in registers of type R; the result is cut to U before it is stored.
#define OP1(name, R, U, T, expression)                            \
  static int name(warp *w, const insn *i, u32 m) {                \
    const R *A = (const R *)r32(w, src(i, 0));                    \
    R *D = (R *)r32(w, dst(i, 0));                                \
    LOOP(T a = (T)A[l]; D[l] = (R)(U)(expression);) return NEXT;  \
  }
#define OP2(name, R, U, T, expression)                                                 \
  static int name(warp *w, const insn *i, u32 m) {                                     \
    const R *A = (const R *)r32(w, src(i, 0)), *B = (const R *)r32(w, src(i, 1));      \
    R *D = (R *)r32(w, dst(i, 0));                                                     \
    LOOP(T a = (T)A[l]; T b = (T)B[l]; D[l] = (R)(U)(expression);) return NEXT;        \
  }
#define SHIFT(name, R, U, T, expression)                                               \
  static int name(warp *w, const insn *i, u32 m) {                                     \
    const R *A = (const R *)r32(w, src(i, 0));                                         \
    const u32 *B = r32(w, src(i, 1));                                                  \
    R *D = (R *)r32(w, dst(i, 0));                                                     \
    enum { WIDTH = sizeof(U) * 8 };                                                    \
    LOOP(T a = (T)A[l]; u32 b = B[l]; D[l] = (R)(U)(expression);) return NEXT;         \
  }
#define COMPARE(name, R, T, op)                                                        \
  static int name(warp *w, const insn *i, u32 m) {                                     \
    const R *A = (const R *)r32(w, src(i, 0)), *B = (const R *)r32(w, src(i, 1));      \
    u32 *D = r32(w, dst(i, 0));                                                        \
    LOOP(D[l] = (T)A[l] op (T)B[l];) return NEXT;                                      \
  }
#define SIX(t, R, T)                                                                             \
  COMPARE(eq_##t, R, T, ==) COMPARE(ne_##t, R, T, !=) COMPARE(lt_##t, R, T, <) COMPARE(le_##t, R, T, <=) \
  COMPARE(gt_##t, R, T, >) COMPARE(ge_##t, R, T, >=)

// Wrapping arithmetic is done unsigned: signed overflow would be undefined in C.
#define COMMON(w_, R, U, S)                                                                      \
  OP2(add_##w_, R, U, U, (U)(a + b)) OP2(sub_##w_, R, U, U, (U)(a - b))                           \
  OP2(mul_##w_, R, U, u64, (U)(a * b))                                                           \
  OP2(and_##w_, R, U, U, a & b) OP2(or_##w_, R, U, U, a | b) OP2(xor_##w_, R, U, U, a ^ b)       \
  OP1(not_##w_, R, U, U, ~a) OP1(neg_##w_, R, U, U, (U)(0 - a))                                  \
  OP1(abs_s##w_, R, U, S, a < 0 ? (U)0 - (U)a : (U)a)                                            \
  OP2(min_u##w_, R, U, U, a < b ? a : b) OP2(max_u##w_, R, U, U, a > b ? a : b)                  \
  OP2(min_s##w_, R, U, S, a < b ? a : b) OP2(max_s##w_, R, U, S, a > b ? a : b)                  \
  OP2(div_u##w_, R, U, U, b ? a / b : (U)~(U)0) OP2(rem_u##w_, R, U, U, b ? a % b : a)           \
  OP2(div_s##w_, R, U, S, b == 0 ? -1 : b == -1 ? (S)((U)0 - (U)a) : a / b)                      \
  OP2(rem_s##w_, R, U, S, b == 0 ? a : b == -1 ? 0 : a % b)                                      \
  SHIFT(shl_##w_, R, U, U, b >= WIDTH ? 0 : (U)(a << b)) SHIFT(shr_u##w_, R, U, U, b >= WIDTH ? 0 : a >> b) \
  SHIFT(shr_s##w_, R, U, S, a >> (b >= WIDTH ? WIDTH - 1 : b))                                   \
  OP1(mov_##w_, R, U, U, a)                                                                      \
  SIX(u##w_, R, U) SIX(s##w_, R, S)
COMMON(16, u32, u16, i16)
COMMON(32, u32, u32, i32)
COMMON(64, u64, u64, i64)

#define WIDE(name, T, W, MORE)                                                                   \
  static int name(warp *w, const insn *i, u32 m) {                                               \
    const u32 *A = r32(w, src(i, 0)), *B = r32(w, src(i, 1));                                    \
    const u64 *C = i->num_src > 2 ? r64(w, src(i, 2)) : NULL;                                    \
    u64 *D = r64(w, dst(i, 0));                                                                  \
    LOOP(D[l] = (u64)((W)(T)A[l] * (W)(T)B[l]) + (MORE && C ? C[l] : 0);) return NEXT;           \
  }
WIDE(wide_u32, u32, u64, 1)
WIDE(wide_s32, i32, i64, 1)
OP2(mulhi_u32, u32, u32, u64, a * b >> 32)
OP2(mulhi_s32, u32, u32, i32, (i64)a * b >> 32)
OP1(clz_32, u32, u32, u32, a ? (u32)__builtin_clz(a) : 32)
OP1(popc_32, u32, u32, u32, (u32)__builtin_popcount(a))
static int wide_u16(warp *w, const insn *i, u32 m) {
  const u32 *A = r32(w, src(i, 0)), *B = r32(w, src(i, 1));
  u32 *D = r32(w, dst(i, 0));
  LOOP(D[l] = (u32)(u16)A[l] * (u16)B[l];) return NEXT;
}

#define MAD(name, R, U)                                                                          \
  static int name(warp *w, const insn *i, u32 m) {                                               \
    const R *A = (const R *)r32(w, src(i, 0)), *B = (const R *)r32(w, src(i, 1));                \
    const R *C = (const R *)r32(w, src(i, 2));                                                   \
    R *D = (R *)r32(w, dst(i, 0));                                                               \
    LOOP(D[l] = (R)(U)((u64)A[l] * B[l] + C[l]);) return NEXT;                                   \
  }
MAD(mad_16, u32, u16)
MAD(mad_32, u32, u32)
MAD(mad_64, u64, u64)

static int bfe(warp *w, const insn *i, u32 m, int is_signed) {
  const u32 *A = r32(w, src(i, 0)), *P = r32(w, src(i, 1)), *N = r32(w, src(i, 2));
  u32 *D = r32(w, dst(i, 0));
  LOOP(u32 at = P[l] & 255, n = N[l] & 255; u32 value = 0;
       u32 sign = is_signed && n ? A[l] >> (at + n - 1 > 31 ? 31 : at + n - 1) & 1 : 0;
       for (u32 k = 0; k < 32; k++) value |= (k < n && at + k <= 31 ? A[l] >> (at + k) & 1 : sign) << k;
       D[l] = value;) return NEXT;
}
static int bfe_u32(warp *w, const insn *i, u32 m) { return bfe(w, i, m, 0); }
static int bfe_s32(warp *w, const insn *i, u32 m) { return bfe(w, i, m, 1); }

static int bfi_32(warp *w, const insn *i, u32 m) {
  const u32 *A = r32(w, src(i, 0)), *B = r32(w, src(i, 1)), *P = r32(w, src(i, 2)), *N = r32(w, src(i, 3));
  u32 *D = r32(w, dst(i, 0));
  LOOP(u32 at = P[l] & 255, n = N[l] & 255; u64 field = n >= 32 ? 0xffffffffu : (1ull << n) - 1;
       u32 hole = at >= 32 ? 0 : (u32)(field << at);
       D[l] = (B[l] & ~hole) | ((at >= 32 ? 0 : A[l] << at) & hole);) return NEXT;
}

static int prmt_32(warp *w, const insn *i, u32 m) {
  const u32 *A = r32(w, src(i, 0)), *B = r32(w, src(i, 1)), *C = r32(w, src(i, 2));
  u32 *D = r32(w, dst(i, 0));
  LOOP(u64 both = (u64)B[l] << 32 | A[l]; u32 value = 0; for (int k = 0; k < 4; k++) {
         u32 pick = C[l] >> (4 * k) & 15, byte = (u32)(both >> (8 * (pick & 7)) & 255);
         value |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * k);
       } D[l] = value;) return NEXT;
}

static int lop3_32(warp *w, const insn *i, u32 m) {
  const u32 *A = r32(w, src(i, 0)), *B = r32(w, src(i, 1)), *C = r32(w, src(i, 2));
  u32 *D = r32(w, dst(i, 0));
  LOOP(u32 value = 0; for (int k = 0; k < 8; k++) if (i->imm >> k & 1)
         value |= (k & 4 ? A[l] : ~A[l]) & (k & 2 ? B[l] : ~B[l]) & (k & 1 ? C[l] : ~C[l]);
       D[l] = value;) return NEXT;
}

#define SELECT(name, R)                                                                          \
  static int name(warp *w, const insn *i, u32 m) {                                               \
    const R *A = (const R *)r32(w, src(i, 0)), *B = (const R *)r32(w, src(i, 1));                \
    const u32 *P = r32(w, src(i, 2));                                                            \
    R *D = (R *)r32(w, dst(i, 0));                                                               \
    LOOP(D[l] = P[l] ? A[l] : B[l];) return NEXT;                                                \
  }
SELECT(selp_32, u32)
SELECT(selp_64, u64)
OP1(not_pred, u32, u32, u32, !a)

#define ENTRIES(w)                                                                                              \
  {"add.i" #w, add_##w}, {"sub.i" #w, sub_##w}, {"mul.i" #w, mul_##w}, {"and.b" #w, and_##w}, {"or.b" #w, or_##w}, \
  {"xor.b" #w, xor_##w}, {"not.b" #w, not_##w}, {"neg.i" #w, neg_##w}, {"abs.s" #w, abs_s##w},                   \
  {"min.u" #w, min_u##w}, {"max.u" #w, max_u##w}, {"min.s" #w, min_s##w}, {"max.s" #w, max_s##w},                \
  {"div.u" #w, div_u##w}, {"rem.u" #w, rem_u##w}, {"div.s" #w, div_s##w}, {"rem.s" #w, rem_s##w},                \
  {"shl.b" #w, shl_##w}, {"shr.u" #w, shr_u##w}, {"shr.s" #w, shr_s##w}, {"mov.b" #w, mov_##w},                  \
  {"mad.i" #w, mad_##w},                                                                                        \
  {"eq.u" #w, eq_u##w}, {"ne.u" #w, ne_u##w}, {"lt.u" #w, lt_u##w}, {"le.u" #w, le_u##w}, {"gt.u" #w, gt_u##w},  \
  {"ge.u" #w, ge_u##w}, {"eq.s" #w, eq_s##w}, {"ne.s" #w, ne_s##w}, {"lt.s" #w, lt_s##w}, {"le.s" #w, le_s##w},  \
  {"gt.s" #w, gt_s##w}, {"ge.s" #w, ge_s##w}
TABLE(integer_ops) = {
    ENTRIES(16), ENTRIES(32), ENTRIES(64),
    {"wide.u32", wide_u32}, {"wide.s32", wide_s32}, {"wide.u16", wide_u16}, {"mulhi.u32", mulhi_u32},
    {"mulhi.s32", mulhi_s32}, {"bfe.u32", bfe_u32}, {"bfe.s32", bfe_s32}, {"bfi.b32", bfi_32}, {"prmt.b32", prmt_32},
    {"lop3.b32", lop3_32}, {"clz.b32", clz_32}, {"popc.b32", popc_32}, {"selp.b32", selp_32}, {"selp.b64", selp_64},
    {"not.pred", not_pred}, {"and.pred", and_32}, {"or.pred", or_32}, {"xor.pred", xor_32}, {"mov.pred", mov_32},
    {NULL, NULL}};
