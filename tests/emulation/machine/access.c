// ld and st: parameters, global and shared memory, with vectors. imm: offset; imm2: bytes of one element.
#include "machine.h"

static void scatter(const warp *w, const insn *i, int l, const u8 *from) {
  for (int k = 0; k < i->num_dst; k++) {
    u64 value = 0;
    memcpy(&value, from + k * i->imm2, (size_t)i->imm2);
    if (i->flags & F_SIGNED) value = (u64)(i64)(i32)value;
    if (i->imm2 == 8 || i->flags & F_WIDENED) r64(w, dst(i, k))[l] = value;
    else r32(w, dst(i, k))[l] = (u32)value;
  }
}

static int load_parameter(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) scatter(w, i, l, w->m->params + i->imm);
  return NEXT;
}

// To a generic address: of a parameter, or (one source) of a place among the parameters.
static int parameter_address(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) r64(w, dst(i, 0))[l] = (u64)(w->m->params + i->imm) + (i->num_src ? r64(w, src(i, 0))[l] : 0);
  return NEXT;
}

static int parameter_place(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    if (i->imm2 == 64) r64(w, dst(i, 0))[l] = (u64)i->imm;
    else r32(w, dst(i, 0))[l] = (u32)i->imm;
  }
  return NEXT;
}

static void gather(const warp *w, const insn *i, int first, int num, int l, u8 *into) {
  for (int k = 0; k < num; k++) {
    i32 unit = i->reg[first + k];
    if (i->imm2 == 8 || i->flags & F_WIDENED) memcpy(into + k * i->imm2, r64(w, unit) + l, (size_t)i->imm2);
    else memcpy(into + k * i->imm2, r32(w, unit) + l, (size_t)i->imm2);
  }
}

static int load_global(warp *w, const insn *i, u32 m) {
  const u64 *base = r64(w, src(i, 0));
  u64 address[LANES];
  u32 size = (u32)(i->num_dst * i->imm2);
  u8 data[64];
  EACH_LANE(l, m) {
    address[l] = base[l] + (u64)i->imm;
    global_read(w, l, address[l], size, data);
    scatter(w, i, l, data);
  }
  count_sectors(w, address, m, size);
  return NEXT;
}

static int store_global(warp *w, const insn *i, u32 m) {
  const u64 *base = r64(w, src(i, 0));
  u64 address[LANES];
  u32 size = (u32)((i->num_src - 1) * i->imm2);
  u8 data[64];
  EACH_LANE(l, m) {
    address[l] = base[l] + (u64)i->imm;
    gather(w, i, i->num_dst + 1, i->num_src - 1, l, data);
    global_write(w, l, address[l], size, data);
  }
  count_sectors(w, address, m, size);
  return NEXT;
}

static int load_shared(warp *w, const insn *i, u32 m) {
  const u32 *base = r32(w, src(i, 0));
  u32 address[LANES], size = (u32)(i->num_dst * i->imm2);
  u8 data[64];
  EACH_LANE(l, m) {
    address[l] = base[l] + (u32)i->imm;
    shared_read(w, l, address[l], size, size, pc_of(w, i), data);
    scatter(w, i, l, data);
  }
  count_banks(w, address, m, size);
  return NEXT;
}

static int store_shared(warp *w, const insn *i, u32 m) {
  const u32 *base = r32(w, src(i, 0));
  u32 address[LANES], size = (u32)((i->num_src - 1) * i->imm2);
  u8 data[64];
  EACH_LANE(l, m) {
    address[l] = base[l] + (u32)i->imm;
    gather(w, i, i->num_dst + 1, i->num_src - 1, l, data);
    shared_write(w, l, address[l], size, size, pc_of(w, i), data);
  }
  count_banks(w, address, m, size);
  return NEXT;
}

TABLE(access_ops) = {{"ld.param", load_parameter}, {"param.address", parameter_address}, {"param.place", parameter_place},
                     {"ld.global", load_global}, {"st.global", store_global},
                     {"ld.shared", load_shared}, {"st.shared", store_shared}, {NULL, NULL}};
