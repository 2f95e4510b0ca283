// wgmma: products of a warp group, on their way from mma_async until wait_group.
//
// Each warp takes its own 16 rows. What it reads of shared memory is in use until it has waited, as are its registers.
#include <stdlib.h>
#include "machine.h"

typedef struct {
  const insn *i;
  u32 group;
  u32 *pieces, num_pieces;  // addresses of 16 bytes each
} product;

struct products { product *list; u32 count, room; };

static u32 finished;  // counts waits: clocks of the actors that stand for what products have read

typedef struct { u32 start, leading, stride, width; } operand;

static operand describe(warp *w, u64 d) {
  static const u32 widths[] = {0, 128, 64, 32};
  operand o = {(u32)(d & 0x3fff) << 4, (u32)(d >> 16 & 0x3fff) << 4, (u32)(d >> 32 & 0x3fff) << 4, widths[d >> 62 & 3]};
  if (!o.width) fault(w, 0, d, "wgmma", "a matrix descriptor without swizzle, which is not emulated");
  if (d >> 49 & 7) fault(w, 0, d, "wgmma", "a matrix descriptor with a base offset, which is not emulated");
  return o;
}

static u32 swizzled(const operand *o, u32 address) {
  u32 bits = o->width == 128 ? 7 : o->width == 64 ? 3 : 1;
  return address ^ ((address >> 7 & bits) << 4);
}

static u16 *take(warp *w, product *p, u32 address, u16 *into) {
  shared_async_read(w, 0, address, 16, pc_of(w, p->i), into);
  p->pieces[p->num_pieces++] = address;
  return into;
}

// rows x 16 elements, K innermost (or, transposed, the rows innermost), as doubles [16][rows].
static void fetch(warp *w, product *p, u64 descriptor, u32 first, u32 rows, int transposed, int bf16, double *into, u32 pitch) {
  operand o = describe(w, descriptor);
  u16 piece[8];
  if (!transposed) {
    for (u32 r = first; r < first + rows; r++)
      for (u32 half = 0; half < 2; half++) {
        take(w, p, swizzled(&o, o.start + r / 8 * o.stride + r % 8 * o.width + half * 16), piece);
        for (u32 e = 0; e < 8; e++)
          into[(half * 8 + e) * pitch + r - first] = bf16 ? bf16_to_float(piece[e]) : half_to_float(piece[e]);
      }
    return;
  }
  u32 per = o.width / 2;
  for (u32 k = 0; k < 16; k++)
    for (u32 r = first; r < first + rows; r += 8) {
      take(w, p, swizzled(&o, o.start + r / per * o.leading + k / 8 * o.stride + k % 8 * o.width + r % per * 2), piece);
      for (u32 e = 0; e < 8; e++) into[k * pitch + r - first + e] = bf16 ? bf16_to_float(piece[e]) : half_to_float(piece[e]);
    }
}

static void own_registers(warp *w, const insn *i, u32 index, int accumulator) {
  u32 unit = (u32)i->reg[i->num_dst + i->num_src + (i32)index];
  u8 s = w->state[unit];
  if (s & REG_WRITE_IN_FLIGHT && !accumulator) fault(w, 0, 0, "accumulator", "takes a register that a wgmma still writes");
  if (accumulator && s & REG_READ_IN_FLIGHT) fault(w, 0, 0, "accumulator", "writes a register that a wgmma still reads");
  if (!(s & REG_WRITE_IN_FLIGHT) && (w->stamp[unit] > w->fenced_step || !w->fenced_step))
    fault(w, 0, 0, "wgmma", "takes a register that others used since the last wgmma.fence");
}

// Sources: [descriptor of A], descriptor of B, whether to add to D. Behind them: D's registers (imm2), then A's.
static int multiply(warp *w, const insn *i, u32 m) {
  if (m != ~0u) fault(w, first_lane(m), 0, "divergence", "wgmma without all of its warp");
  u32 N = (u32)i->imm, num_d = (u32)i->imm2, bf16 = (i->flags & F_BF16) != 0, quarter = w->index % 4 * 16;
  int in_registers = (i->flags & F_A_IN_REGISTERS) != 0;
  const i32 *own = i->reg + i->num_dst + i->num_src;
  if (!w->open) w->open = calloc(1, sizeof *w->open), w->flying = calloc(1, sizeof *w->flying);
  products *list = w->open;
  if (list->count + w->flying->count == MOST_IN_FLIGHT)
    fault(w, 0, 0, "wgmma", "more than %d products that nobody waits for", MOST_IN_FLIGHT);
  if (list->count == list->room) list->list = realloc(list->list, (list->room = list->room ? 2 * list->room : 16) * sizeof(product));
  product *p = &list->list[list->count];
  *p = (product){i, 0, malloc((2 * N + 64) * sizeof(u32)), 0};
  list->count++;
  int adds = r32(w, src(i, in_registers ? 1 : 2))[0] != 0;
  for (u32 k = 0; k < num_d; k++) {
    own_registers(w, i, k, 1);
    if (adds && ~w->defined[own[k]]) fault(w, 0, 0, "register", "adds to a register that was never written");
  }
  double a[16][16], b[16][256];  // [k][row], [k][column]
  fetch(w, p, r64(w, src(i, in_registers ? 0 : 1))[0], 0, N, (i->flags & F_TRANS) != 0, (int)bf16, &b[0][0], 256);
  if (in_registers) {
    for (u32 r = 0; r < 4; r++) {
      own_registers(w, i, num_d + r, 0);
      if (~w->defined[own[num_d + r]]) fault(w, 0, 0, "register", "takes a register that was never written");
      const u32 *A = r32(w, own[num_d + r]);
      for (u32 l = 0; l < LANES; l++) {
        u32 row = l / 4 + 8 * (r & 1), k = 2 * (l % 4) + 8 * (r >> 1);
        a[k][row] = bf16 ? bf16_to_float((u16)A[l]) : half_to_float((u16)A[l]);
        a[k + 1][row] = bf16 ? bf16_to_float((u16)(A[l] >> 16)) : half_to_float((u16)(A[l] >> 16));
      }
    }
  } else fetch(w, p, r64(w, src(i, 0))[0], quarter, 16, (i->flags & F_ALL) != 0, (int)bf16, &a[0][0], 16);
  for (u32 row = 0; row < 16; row++) {
    double sum[256] = {0};
    for (u32 k = 0; k < 16; k++)
      for (u32 n = 0; n < N; n++) sum[n] += a[k][row] * b[k][n];
    for (u32 n = 0; n < N; n++) {
      u32 *D = r32(w, own[n / 8 * 4 + 2 * (row >= 8) + (n & 1)]) + row % 8 * 4 + n % 8 / 2;
      float f = (float)(sum[n] + (adds ? (double)as_float(*D) : 0.0));
      *D = f != f ? 0x7fffffff : as_bits(f);
    }
  }
  for (u32 k = 0; k < num_d; k++) w->state[own[k]] |= REG_WRITE_IN_FLIGHT, w->defined[own[k]] = ~0u;
  for (u32 r = 0; in_registers && r < 4; r++) w->state[own[num_d + r]] |= REG_READ_IN_FLIGHT;
  return NEXT;
}

static void mark(warp *w, const product *p, int in_flight) {
  const insn *i = p->i;
  const i32 *own = i->reg + i->num_dst + i->num_src;
  for (i64 k = 0; k < i->imm2 + (i->flags & F_A_IN_REGISTERS ? 4 : 0); k++) {
    u8 flag = k < i->imm2 ? REG_WRITE_IN_FLIGHT : REG_READ_IN_FLIGHT;
    if (in_flight) w->state[own[k]] |= flag;
    else w->state[own[k]] &= (u8)~flag;
  }
}

static int fence(warp *w, const insn *i, u32 m) {
  (void)i, (void)m;
  w->fenced_step = w->step;
  return NEXT;
}

static int commit(warp *w, const insn *i, u32 m) {
  (void)i, (void)m;
  w->groups++;
  if (!w->open) return NEXT;
  products *f = w->flying;
  for (u32 k = 0; k < w->open->count; k++) {
    if (f->count == f->room) f->list = realloc(f->list, (f->room = f->room ? 2 * f->room : 16) * sizeof(product));
    f->list[f->count] = w->open->list[k], f->list[f->count++].group = w->groups;
  }
  w->open->count = 0;
  return NEXT;
}

static int wait_group(warp *w, const insn *i, u32 m) {
  if (m != ~0u) fault(w, first_lane(m), 0, "divergence", "wgmma.wait_group without all of its warp");
  products *f = w->flying;
  if (!f) return NEXT;
  u32 kept = 0, actor = products_actor(w->m, w->index), clock = ++finished;
  for (u32 k = 0; k < f->count; k++) {
    product *p = &f->list[k];
    if (p->group + i->imm > w->groups) {
      f->list[kept++] = *p;
      continue;
    }
    mark(w, p, 0);
    for (u32 x = 0; x < p->num_pieces; x++) shared_async_done(w, p->pieces[x], 16, pc_of(w, p->i), actor, clock);
    free(p->pieces);
  }
  f->count = kept;
  for (u32 k = 0; k < kept; k++) mark(w, &f->list[k], 1);
  for (u32 k = 0; k < w->open->count; k++) mark(w, &w->open->list[k], 1);
  for (u32 l = 0; l < LANES; l++) know(w->m, w->index * LANES + l, actor, clock);
  return NEXT;
}

void products_finish(warp *w) {
  if (!w->open) return;
  for (u32 k = 0; k < w->open->count; k++) free(w->open->list[k].pieces);
  for (u32 k = 0; k < w->flying->count; k++) free(w->flying->list[k].pieces);
  w->open->count = w->flying->count = 0;
}

void products_free(warp *w) {
  free(w->open->list), free(w->flying->list), free(w->open), free(w->flying);
}

TABLE(wgmma_ops) = {{"wgmma.mma_async", multiply}, {"wgmma.fence", fence}, {"wgmma.commit_group", commit},
                    {"wgmma.wait_group", wait_group}, {NULL, NULL}};
