// The loop over a CTA's warps, and what the tests call.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "machine.h"

static _Noreturn void stop(warp *w, int lane, u64 address, i64 other, i64 other_pc, const char *kind,
                           const char *format, va_list rest) {
  finding *f = &w->m->finding;
  snprintf(f->kind, sizeof f->kind, "%s", kind);
  vsnprintf(f->text, sizeof f->text, format, rest);
  f->thread = lane < 0 ? -1 : (i64)(w->index * LANES + (u32)lane);
  f->pc = w->step ? (i64)w->pc[lane < 0 ? 0 : lane] : 0;
  f->address = address, f->other_thread = other, f->other_pc = other_pc;
  f->block = w->m->block[0];
  longjmp(w->m->escape, 1);
}

void fault(warp *w, int lane, u64 address, const char *kind, const char *format, ...) {
  va_list rest;
  va_start(rest, format);
  stop(w, lane, address, -1, -1, kind, format, rest);
}

void fault_with(warp *w, int lane, u64 address, u32 other, u32 other_pc, const char *kind, const char *format, ...) {
  va_list rest;
  va_start(rest, format);
  stop(w, lane, address, other < w->m->num_threads ? (i64)other : -1, other_pc, kind, format, rest);
}

handler find_handler(const char *name) {
  static const entry *const tables[] = {integer_ops, floating_ops, convert_ops, access_ops, copy_ops,
                                        matrix_ops,  wgmma_ops,    tensor_ops,  sync_ops,   control_ops};
  for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
    for (const entry *e = tables[t]; e->name; e++)
      if (!strcmp(e->name, name)) return e->run;
  return NULL;
}

// A mov or a change of sign; copies of other kinds have their sizes in these bits.
static int is_copy(const insn *i) { return i->flags & F_COPY && i->kind <= K_MOVE; }

// A register that was made of nothing may be copied and computed with, as by lanes whose result nobody takes. Where it
// would matter, in an address, a predicate, a product, or memory, it is a fault. Returns the lanes of the result that
// have a value; those of a shfl are known only when it has run.
static u32 check_registers(warp *w, const insn *i, u32 mask) {
  int lane = first_lane(mask), strict = i->kind > K_MOVE && !(i->flags & F_SHUFFLE);
  u32 all = ~0u;
  for (int k = 0; k < i->num_src; k++) {
    i32 unit = src(i, k);
    if (w->state[unit] & REG_WRITE_IN_FLIGHT) fault(w, lane, 0, "accumulator", "reads a register that a wgmma still writes: no wait");
    u32 missing = mask & ~w->defined[unit];
    if (!is_copy(i)) w->stamp[unit] = w->step;
    if (strict && missing) fault(w, first_lane(missing), 0, "register", "uses a register that was never written");
    all &= w->defined[unit];
  }
  for (int k = 0; k < i->num_dst; k++)
    if (w->state[dst(i, k)]) fault(w, lane, 0, "accumulator", "overwrites a register that a wgmma still uses: no wait");
  if (i->flags & F_SELECT) {
    const u32 *p = r32(w, src(i, 2));
    all = w->defined[src(i, 2)];
    EACH_LANE(l, all) if (!(w->defined[src(i, p[l] ? 0 : 1)] >> l & 1)) all &= ~(1u << l);
  }
  return all;
}

// Of a pair one half may be made of nothing: nobody takes it. A split's destinations, a join's and a sum's sources.
static void note_pair(warp *w, const insn *i, u32 mask) {
  u32 valid[2] = {~0u, ~0u};
  for (int k = 0; k < i->num_src; k++)
    for (int h = 0; h < 2; h++) {
      int joins = i->kind == K_MOVE && i->num_src == 2;
      if (!joins) valid[h] &= w->defined[src(i, k)] | w->half[h][src(i, k)];
      else if (h == k) valid[h] = w->defined[src(i, k)];
    }
  for (int k = 0; k < i->num_dst; k++) {
    u32 unit = (u32)dst(i, k), whole = i->num_dst == 2 ? valid[k] : valid[0] & valid[1];
    w->defined[unit] = (w->defined[unit] & ~mask) | (whole & mask);
    for (int h = 0; h < 2; h++) w->half[h][unit] = (w->half[h][unit] & ~mask) | (i->num_dst == 2 ? 0 : valid[h] & mask);
    w->stamp[unit] = w->step;
  }
}

static void note_results(warp *w, const insn *i, u32 mask, u32 valid) {
  if (i->flags & F_PAIR) {
    note_pair(w, i, mask);
    return;
  }
  if (i->flags & F_SHUFFLE) {
    u32 before = w->defined[src(i, 0)];
    EACH_LANE(l, mask) valid = before >> w->came_from[l] & 1 ? valid | 1u << l : valid & ~(1u << l);
  }
  for (int k = 0; k < i->num_dst; k++) {
    u32 *d = &w->defined[dst(i, k)];
    *d = (*d & ~mask) | (valid & mask);
    if (mask & ~valid)
      for (int h = 0; h < 2; h++) {
        u32 *part = &w->half[h][dst(i, k)];
        *part = (*part & ~mask) | (is_copy(i) ? w->half[h][src(i, 0)] & mask : 0);
      }
    // a copy is as old as what it copies: LLVM puts some behind wgmma.fence, the assembler before WARPGROUP.ARRIVE
    w->stamp[dst(i, k)] = is_copy(i) ? w->stamp[src(i, 0)] : w->step;
  }
}

static int runnable(const warp *w) { return (w->live & ~w->stopped) != 0; }

// The lanes that are furthest behind go on, so that those who took another way are caught up with.
static void step(warp *w) {
  machine *m = w->m;
  u32 ready = w->live & ~w->stopped, here = ~0u, at = 0;
  EACH_LANE(l, ready) if (w->pc[l] < here) here = w->pc[l];
  EACH_LANE(l, ready) at |= (u32)(w->pc[l] == here) << l;
  for (;;) {
    if (here >= m->num_code) fault(w, first_lane(at), 0, "control", "runs past the kernel's end");
    const insn *i = m->code + here;
    u32 mask = at;
    w->step++;
    if (++m->counts.steps > m->limit) fault(w, first_lane(at), 0, "endless", "does not end: %llu instructions", (unsigned long long)m->limit);
    if (i->guard >= 0) {
      const u32 *p = r32(w, i->guard);
      u32 on = 0, missing = at & ~w->defined[i->guard];
      if (missing) fault(w, first_lane(missing), 0, "register", "guarded by a predicate that was never written");
      for (int l = 0; l < LANES; l++) on |= (u32)(p[l] != 0) << l;
      mask &= i->negated ? ~on : on;
    }
    int outcome = NEXT;
    if (mask) {
      m->counts.executed[i->kind]++;
      u32 valid = check_registers(w, i, mask);
      outcome = i->run(w, i, mask);
      note_results(w, i, mask, valid);
    }
    if (outcome == NEXT) {
      here++;
      EACH_LANE(l, at) w->pc[l] = here;
      if (at == ready && !(w->stopped & at)) continue;  // no other lane could be behind
    } else if (outcome == JUMPED) {
      EACH_LANE(l, at & ~mask) w->pc[l] = here + 1;
    }
    return;
  }
}

static void registers_start(machine *m, const u32 *constant_units, const u64 *constants, u32 num_constants) {
  for (u32 k = 0; k < m->num_warps; k++) {
    warp *w = &m->warps[k];
    memset(w->state, 0, m->num_units), memset(w->defined, 0, m->num_units * sizeof(u32));
    memset(w->stamp, 0, m->num_units * sizeof(u32));
    for (int h = 0; h < 2; h++) memset(w->half[h], 0, m->num_units * sizeof(u32));
    for (u32 c = 0; c < num_constants; c++) {
      u32 unit = constant_units[c] & 0x3fffffff;
      w->defined[unit] = ~0u;
      for (u32 l = 0; l < LANES; l++) {
        if (constant_units[c] & 0x80000000) r64(w, (i32)unit)[l] = constants[c];
        else if (constant_units[c] & 0x40000000) {  // a special register
          u32 values[] = {k * LANES + l, 0, 0, m->block[0], m->block[1], m->block[2],
                          m->grid[0], m->grid[1], m->grid[2], l, k, m->num_threads, 1, 0};
          r32(w, (i32)unit)[l] = values[constants[c]];
        } else r32(w, (i32)unit)[l] = (u32)constants[c];
      }
    }
    w->live = ~0u, w->stopped = 0, w->step = w->fenced_step = 0, w->groups = 0;
    memset(w->pc, 0, sizeof w->pc);
    w->num_bulk = 0, memset(w->bulk_groups, 0, sizeof w->bulk_groups);
  }
}

static void run_block(machine *m) {
  for (;;) {
    int any = 0, live = 0;
    for (u32 k = 0; k < m->num_warps; k++) {
      warp *w = &m->warps[m->order[k]];
      live |= w->live != 0;
      while (runnable(w)) step(w), any = 1;
    }
    if (!live) return;
    if (!any) {
      char text[360];
      for (u32 k = 0; k < m->num_warps; k++)
        if (m->warps[k].live) fault(&m->warps[k], first_lane(m->warps[k].live), 0, "deadlock", "%s", waiting(m, text, sizeof text));
    }
  }
}

machine *machine_new(const insn *code, u32 num_code, u32 num_units, u32 num_warps) {
  machine *m = calloc(1, sizeof *m);
  m->code = code, m->num_code = num_code, m->num_units = num_units;
  m->num_warps = num_warps, m->num_threads = num_warps * LANES;
  m->order = malloc(num_warps * sizeof(u32));
  for (u32 k = 0; k < num_warps; k++) {
    warp *w = &m->warps[k];
    w->m = m, w->index = k;
    w->reg = calloc((size_t)num_units * LANES, sizeof(u32));
    w->state = malloc(num_units), w->defined = malloc(num_units * sizeof(u32)), w->stamp = malloc(num_units * sizeof(u32));
    for (int h = 0; h < 2; h++) w->half[h] = malloc(num_units * sizeof(u32));
  }
  return m;
}

void machine_free(machine *m) {
  for (u32 k = 0; k < m->num_warps; k++) {
    warp *w = &m->warps[k];
    products_finish(w);
    for (int l = 0; l < LANES; l++) free(w->async[l].list);
    if (w->open) products_free(w);
    free(w->bulk), free(w->reg), free(w->state), free(w->defined), free(w->stamp), free(w->half[0]), free(w->half[1]);
  }
  sync_stop(m), shared_stop(m), clocks_stop(m);
  free(m->order), free(m);
}

// Runs blocks [first, last) of the grid. 0: all well; 1: m->finding tells.
int machine_run(machine *m, const u32 grid[3], u64 first, u64 last, u32 shared_bytes, u8 *params, u64 param_bytes,
                const u32 *constant_units, const u64 *constants, u32 num_constants, allocation *alloc, u32 num_alloc,
                u64 limit, u32 seed_) {
  volatile u32 seed = seed_;
  memcpy(m->grid, grid, sizeof m->grid);
  m->params = params, m->param_bytes = param_bytes, m->alloc = alloc, m->num_alloc = num_alloc, m->last_alloc = 0, m->limit = limit;
  volatile u64 b = first;
  if (setjmp(m->escape)) return 1;
  for (; b < last; b++) {
    m->block[0] = (u32)(b % grid[0]), m->block[1] = (u32)(b / grid[0] % grid[1]);
    m->block[2] = (u32)(b / grid[0] / grid[1]);
    m->owner_mark = (u32)b + 1;
    for (u32 k = 0; k < m->num_warps; k++) m->order[k] = k;
    for (u32 k = m->num_warps; seed && k > 1; k--) {  // another order, for who wants to see whether it matters
      seed = seed * 1664525u + 1013904223u;
      u32 other = (seed >> 8) % k, t = m->order[k - 1];
      m->order[k - 1] = m->order[other], m->order[other] = t;
    }
    clocks_start(m), shared_start(m, shared_bytes), sync_start(m);
    registers_start(m, constant_units, constants, num_constants);
    run_block(m);
    for (u32 k = 0; k < m->num_warps; k++) copies_finish(&m->warps[k]), products_finish(&m->warps[k]), bulk_finish(&m->warps[k]);
    sync_finish(m);
  }
  return 0;
}

const finding *machine_finding(const machine *m) { return &m->finding; }
const counts *machine_counts(const machine *m) { return &m->counts; }
size_t insn_size(void) { return sizeof(insn); }
const u32 *machine_registers(const machine *m, u32 warp) { return m->warps[warp].reg; }
