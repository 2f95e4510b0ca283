// Tensor maps and the copies that go by them (TMA): boxes of a tensor of up to five dimensions, swizzled.
#include "machine.h"

typedef struct {  // 128 bytes, as tensormaps.py writes them
  u64 address, strides[4];
  u32 sizes[5], box[5], steps[5];
  u8 rank, type, interleave, swizzle, fill;
} map;

static const u32 ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

static map read_map(warp *w, int lane, u64 address) {
  map t;
  if (address % 64) fault(w, lane, address, "misaligned", "a tensor map is not aligned to 64 bytes");
  if (address - (u64)w->m->params < w->m->param_bytes) memcpy(&t, (const void *)address, sizeof t);
  else {
    u8 bytes[128];
    for (u32 k = 0; k < 128; k += 16) global_read(w, lane, address + k, 16, bytes + k);
    memcpy(&t, bytes, sizeof t);
  }
  if (t.rank < 1 || t.rank > 5 || t.type > 12 || t.swizzle > 3 || t.interleave)
    fault(w, lane, address, "tensor map", "no tensor map, or one that was not finished");
  for (u32 d = 0; d < t.rank; d++)
    if (!t.box[d] || t.box[d] > 256 || t.steps[d] != 1) fault(w, lane, address, "tensor map", "box or step of dimension %u", d);
  return t;
}

// Source: shared destination, map, mbarrier, then coordinates, innermost first.
static int load(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    map t = read_map(w, l, r64(w, src(i, 1))[l]);
    u32 to = r32(w, src(i, 0))[l], bar = r32(w, src(i, 2))[l], element = ELEMENT_BYTES[t.type], rows = 1;
    i64 at[5];
    if (t.rank != i->num_src - 3) fault(w, l, 0, "tensor map", "%d coordinates for a tensor of rank %u", i->num_src - 3, t.rank);
    for (u32 d = 0; d < t.rank; d++) at[d] = (i32)r32(w, src(i, 3 + (int)d))[l];
    for (u32 d = 1; d < t.rank; d++) rows *= t.box[d];
    u32 inner = t.box[0] * element, width = t.swizzle ? 16u << t.swizzle : 0, repeat = width * 8;
    if (to % (repeat > 128 ? repeat : 128)) fault(w, l, to, "misaligned", "a box with this swizzle needs an address aligned to %u", repeat > 128 ? repeat : 128);
    if (inner % 16) fault(w, l, to, "tensor map", "a box with rows of %u bytes", inner);
    u32 slot = mbarrier_slot(w, l, bar), actor, clock;
    mbarrier_arrived_bytes(w, l, bar, rows * inner, &actor, &clock);
    for (u32 r = 0; r < rows; r++) {
      u64 base = t.address;
      int inside = 1;
      for (u32 d = 1, rest = r; d < t.rank; d++) {
        i64 x = at[d] + rest % t.box[d];
        rest /= t.box[d], inside &= x >= 0 && x < (i64)t.sizes[d], base += (u64)x * t.strides[d - 1];
      }
      u8 row[256 * 8] = {0};
      i64 first = at[0] < 0 ? -at[0] : 0, last = (i64)t.sizes[0] - at[0];
      if (last > t.box[0]) last = t.box[0];
      for (i64 e = first; inside && e < last; e++)
        global_read(w, l, base + (u64)((at[0] + e) * element), element, row + e * element);
      for (u32 k = 0; k < inner; k += 16) {
        u32 address = to + r * inner + k;
        if (width) address ^= (address >> 7 & (width / 16 - 1)) << 4;
        shared_async_write(w, l, address, 16, pc_of(w, i), row + k, actor, clock);
      }
    }
    mbarrier_landed(w, l, slot, rows * inner);
  }
  return NEXT;
}

// tensormap.replace on a map in shared memory. imm: which field; imm2: which dimension. Sources: place, value.
static int replace(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    u32 at = (u32)r64(w, src(i, 0))[l];
    u64 value = i->imm == 0 || i->imm == 4 ? r64(w, src(i, 1))[l] : r32(w, src(i, 1))[l];
    u8 bytes[128];
    for (u32 k = 0; k < 128; k += 16) shared_read(w, l, at + k, 16, 16, pc_of(w, i), bytes + k);
    map t;
    memcpy(&t, bytes, sizeof t);
    switch (i->imm) {
      case 0: t.address = value; break;
      case 1: t.rank = (u8)(value + 1); break;
      case 2: t.box[i->imm2] = (u32)value; break;
      case 3: t.sizes[i->imm2] = (u32)value; break;
      case 4: t.strides[i->imm2] = value; break;
      case 5: t.steps[i->imm2] = (u32)value; break;
      case 6: t.type = (u8)value; break;
      case 7: t.interleave = (u8)value; break;
      case 8: t.swizzle = (u8)value; break;
      default: t.fill = (u8)value;
    }
    memcpy(bytes, &t, sizeof t);
    for (u32 k = 0; k < 128; k += 16) shared_write(w, l, at + k, 16, 16, pc_of(w, i), bytes + k);
  }
  return NEXT;
}

// tensormap.cp_fenceproxy: 128 bytes from shared to global memory, by the whole warp.
static int publish_map(warp *w, const insn *i, u32 m) {
  if (m != ~0u) fault(w, first_lane(m), 0, "divergence", "tensormap.cp_fenceproxy without all of its warp");
  warp_sync(w->m, w->index, m);
  u64 to = r64(w, src(i, 0))[0];
  u8 bytes[128];
  for (u32 k = 0; k < 128; k += 16) {
    shared_read(w, 0, (u32)r64(w, src(i, 1))[0] + k, 16, 16, pc_of(w, i), bytes + k);
    global_write(w, 0, to + k, 16, bytes + k);
  }
  return NEXT;
}

TABLE(tensor_ops) = {{"tma.load", load}, {"tensormap.replace", replace}, {"tensormap.publish", publish_map}, {NULL, NULL}};
