// ldmatrix, stmatrix and mma.sync.
#include "machine.h"

static void whole(warp *w, u32 m) {
  if (m != ~0u) fault(w, first_lane(m), 0, "divergence", "a matrix instruction without all of its warp");
}

// Lane l gives the address of row l % 8 of matrix l / 8, and holds elements 2 (l % 4) and the next of row l / 4.
static int load_matrix(warp *w, const insn *i, u32 m) {
  whole(w, m);
  const u32 *base = r32(w, src(i, 0));
  u32 address[LANES], num = (u32)i->num_dst;
  u16 tile[4][8][8];
  for (u32 l = 0; l < 8 * num; l++) {
    address[l] = base[l] + (u32)i->imm;
    shared_read(w, (int)l, address[l], 16, 16, pc_of(w, i), tile[l / 8][l % 8]);
  }
  for (u32 k = 0; k < num; k++) {
    u32 *D = r32(w, dst(i, (int)k));
    for (u32 l = 0; l < LANES; l++) {
      u32 r = l / 4, c = 2 * (l % 4);
      D[l] = i->flags & F_TRANS ? (u32)tile[k][c + 1][r] << 16 | tile[k][c][r] : (u32)tile[k][r][c + 1] << 16 | tile[k][r][c];
    }
  }
  count_banks(w, address, num == 4 ? ~0u : (1u << 8 * num) - 1, 16);
  return NEXT;
}

static int store_matrix(warp *w, const insn *i, u32 m) {
  whole(w, m);
  const u32 *base = r32(w, src(i, 0));
  u32 address[LANES], num = (u32)i->num_src - 1;
  for (u32 k = 0; k < num; k++) {
    const u32 *S = r32(w, src(i, (int)k + 1));
    u16 tile[8][8];
    for (u32 l = 0; l < LANES; l++)
      for (u32 e = 0; e < 2; e++) {
        u32 r = l / 4, c = 2 * (l % 4) + e;
        *(i->flags & F_TRANS ? &tile[c][r] : &tile[r][c]) = (u16)(S[l] >> 16 * e);
      }
    for (u32 r = 0; r < 8; r++) {
      u32 l = 8 * k + r;
      address[l] = base[l] + (u32)i->imm;
      shared_write(w, (int)l, address[l], 16, 16, pc_of(w, i), tile[r]);
    }
  }
  count_banks(w, address, num == 4 ? ~0u : (1u << 8 * num) - 1, 16);
  return NEXT;
}

// m16n8k16 and m16n8k8 of halves: exact products, one sum in double, rounded once to float32.
static int product(warp *w, const insn *i, u32 m) {
  whole(w, m);
  enum { M = 16, N = 8 };
  int K = (int)i->imm, num_a = K / 4, num_b = K / 8;
  double a[M][16], b[16][N];
  int bf16 = (i->flags & F_BF16) != 0;
#define WIDEN(h) (bf16 ? bf16_to_float((u16)(h)) : half_to_float((u16)(h)))
  for (int r = 0; r < num_a; r++) {
    const u32 *A = r32(w, src(i, r));
    for (int l = 0; l < LANES; l++) {
      int row = l / 4 + 8 * (r & 1), col = 2 * (l % 4) + 8 * (r >> 1);
      a[row][col] = WIDEN(A[l]), a[row][col + 1] = WIDEN(A[l] >> 16);
    }
  }
  for (int r = 0; r < num_b; r++) {
    const u32 *B = r32(w, src(i, num_a + r));
    for (int l = 0; l < LANES; l++) {
      int k = 2 * (l % 4) + 8 * r, col = l / 4;
      b[k][col] = WIDEN(B[l]), b[k + 1][col] = WIDEN(B[l] >> 16);
    }
  }
  const u32 *C[4];
  u32 out[4][LANES];
  for (int r = 0; r < 4; r++) C[r] = r32(w, src(i, num_a + num_b + r));
  for (int row = 0; row < M; row++) {
    double sum[N] = {0};
    for (int k = 0; k < K; k++)
      for (int n = 0; n < N; n++) sum[n] += a[row][k] * b[k][n];
    for (int n = 0; n < N; n++) {
      int r = 2 * (row >= 8) + (n & 1), l = row % 8 * 4 + n / 2;
      float f = (float)(sum[n] + (double)as_float(C[r][l]));
      out[r][l] = f != f ? 0x7fffffff : as_bits(f);
    }
  }
  for (int r = 0; r < 4; r++) memcpy(r32(w, dst(i, r)), out[r], sizeof out[r]);
  return NEXT;
}

TABLE(matrix_ops) = {{"ldmatrix", load_matrix}, {"stmatrix", store_matrix}, {"mma.half", product}, {NULL, NULL}};
