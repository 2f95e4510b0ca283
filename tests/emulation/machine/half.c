// float16 and bfloat16 by hand, so that no compiler's half type is needed: to nearest, ties to even.
#include "machine.h"

float half_to_float(u16 h) {
  u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, rest = h & 1023;
  if (exponent == 31) return as_float(sign | 0x7f800000 | rest << 13);
  if (exponent) return as_float(sign | (exponent + 112) << 23 | rest << 13);
  float tiny = (float)rest * 5.9604644775390625e-8f;  // 2^-24
  return as_float(as_bits(tiny) | sign);
}

u16 float_to_half(float f) {
  u32 bits = as_bits(f), magnitude = bits & 0x7fffffff;
  u16 sign = (u16)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return 0x7fff;  // PTX: every NaN becomes this one
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {  // subnormal: adding a half's worth of exponent lets the FPU round
    float shifted = as_float(magnitude) + 0.5f;
    return sign | (u16)(as_bits(shifted) - 0x3f000000);
  }
  return sign | (u16)((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

float bf16_to_float(u16 h) { return as_float((u32)h << 16); }

u16 float_to_bf16(float f) {
  u32 bits = as_bits(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
