// Tensor maps and the copies that go by them (TMA): boxes of a tensor of up to five dimensions, swizzled.
#include <stdlib.h>
#include "machine.h"

typedef struct {  // 128 bytes, as tensormaps.py writes them
  u64 address, strides[4];
  u32 sizes[5], box[5], steps[5];
  u8 rank, type, interleave, swizzle, fill;
} map;

static const u32 ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

// PTX numbers the types otherwise than the driver does: .f32.ftz, .f64 and .bf16 are its 8, 9 and 10.
static const u8 DRIVERS_TYPE[] = {0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 9, 11, 12};

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

typedef struct { map t; u32 place, element, rows, inner, width; i64 at[5]; } box;

// Sources: place in shared memory, map, [mbarrier], then coordinates, innermost first.
static box take_box(warp *w, const insn *i, int l, int first_coordinate) {
  box b = {.t = read_map(w, l, r64(w, src(i, 1))[l]), .place = r32(w, src(i, 0))[l], .rows = 1};
  const map *t = &b.t;
  b.element = ELEMENT_BYTES[t->type];
  if (t->rank != i->num_src - first_coordinate)
    fault(w, l, 0, "tensor map", "%d coordinates for a tensor of rank %u", i->num_src - first_coordinate, t->rank);
  for (u32 d = 0; d < t->rank; d++) b.at[d] = (i32)r32(w, src(i, first_coordinate + (int)d))[l];
  for (u32 d = 1; d < t->rank; d++) b.rows *= t->box[d];
  b.inner = t->box[0] * b.element, b.width = t->swizzle ? 16u << t->swizzle : 0;
  u32 align = b.width * 8 > 128 ? b.width * 8 : 128;
  if (b.place % align) fault(w, l, b.place, "misaligned", "a box with this swizzle needs an address aligned to %u", align);
  if (b.inner % 16 || (b.width && b.inner > b.width))
    fault(w, l, b.place, "tensor map", "a box with rows of %u bytes, a swizzle of %u", b.inner, b.width);
  return b;
}

static u32 piece(const box *b, u32 row, u32 k) {  // where 16 bytes of a row lie
  u32 address = b->place + row * b->inner + k;
  return b->width ? address ^ (address >> 7 & (b->width / 16 - 1)) << 4 : address;
}

// Where a row begins in global memory, and which of its elements lie in the tensor.
static u64 row_of(const box *b, u32 row, i64 *first, i64 *last) {
  const map *t = &b->t;
  u64 base = t->address;
  int inside = 1;
  for (u32 d = 1, rest = row; d < t->rank; d++) {
    i64 x = b->at[d] + rest % t->box[d];
    rest /= t->box[d], inside &= x >= 0 && x < (i64)t->sizes[d], base += (u64)x * t->strides[d - 1];
  }
  *first = b->at[0] < 0 ? -b->at[0] : 0, *last = (i64)t->sizes[0] - b->at[0];
  if (*last > t->box[0]) *last = t->box[0];
  if (!inside) *last = 0;
  return base + (u64)(b->at[0] * (i64)b->element);
}

static int load(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    box b = take_box(w, i, l, 3);
    u32 bar = r32(w, src(i, 2))[l], bytes = b.rows * b.inner;
    u32 slot = mbarrier_slot(w, l, bar), actor, clock;
    mbarrier_arrived_bytes(w, l, bar, bytes, &actor, &clock);
    for (u32 r = 0; r < b.rows; r++) {
      u8 row[256 * 8] = {0};
      i64 first, last;
      u64 base = row_of(&b, r, &first, &last);
      for (i64 e = first; e < last; e++) global_read(w, l, base + (u64)(e * b.element), b.element, row + e * b.element);
      for (u32 k = 0; k < b.inner; k += 16) shared_async_write(w, l, piece(&b, r, k), 16, pc_of(w, i), row + k, actor, clock);
    }
    mbarrier_landed(w, l, slot, bytes);
  }
  return NEXT;
}

// A store reads shared memory until its thread has waited for its group.
static int store(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    box b = take_box(w, i, l, 2);
    for (u32 r = 0; r < b.rows; r++) {
      u8 row[256 * 8];
      i64 first, last;
      u64 base = row_of(&b, r, &first, &last);
      for (u32 k = 0; k < b.inner; k += 16) {
        if (w->num_bulk == w->room_bulk) w->bulk = realloc(w->bulk, (w->room_bulk = w->room_bulk ? 2 * w->room_bulk : 256) * sizeof(bulk));
        w->bulk[w->num_bulk++] = (bulk){piece(&b, r, k), w->bulk_groups[l], pc_of(w, i), (u32)l};
        shared_async_read(w, l, piece(&b, r, k), 16, pc_of(w, i), row + k);
      }
      for (i64 e = first; e < last; e++) global_write(w, l, base + (u64)(e * b.element), b.element, row + e * b.element);
    }
  }
  return NEXT;
}

static int commit(warp *w, const insn *i, u32 m) {
  (void)i;
  EACH_LANE(l, m) w->bulk_groups[l]++;
  return NEXT;
}

static int wait_group(warp *w, const insn *i, u32 m) {
  u32 kept = 0;
  for (u32 k = 0; k < w->num_bulk; k++) {
    bulk one = w->bulk[k];
    if (!(m >> one.lane & 1) || one.group + (u32)i->imm >= w->bulk_groups[one.lane]) {
      w->bulk[kept++] = one;
      continue;
    }
    u32 thread = w->index * LANES + one.lane;
    shared_async_done(w, one.address, 16, one.pc, thread, clock_of(w->m, thread));
  }
  w->num_bulk = kept;
  return NEXT;
}

void bulk_finish(warp *w) {
  if (!w->num_bulk) return;
  w->num_bulk = 0;
  fault(w, -1, 0, "operand", "the kernel ends while a bulk store may still read shared memory: no wait");
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
      case 6: t.type = value < sizeof DRIVERS_TYPE ? DRIVERS_TYPE[value] : 255; break;
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

TABLE(tensor_ops) = {{"tma.load", load}, {"tma.store", store}, {"bulk.commit", commit}, {"bulk.wait", wait_group},
                      {"tensormap.replace", replace}, {"tensormap.publish", publish_map}, {NULL, NULL}};
