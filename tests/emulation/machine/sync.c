// Named barriers, mbarriers, warp barriers and fences.
#include <stdio.h>
#include <stdlib.h>
#include "machine.h"

static const u64 MBARRIER = 0x6d62617272696572;  // what stands in its bytes

struct barrier { u32 arrived, expected; u32 *gathered; };
struct mbarrier {
  u32 address, alive, used, expected, phase, base;  // base: phases of those that were at this place before
  i64 pending, bytes;
  u32 *gathered, *released;
};

static void wipe(machine *m, u32 *knowledge) { memset(knowledge, 0, 2 * actors(m) * sizeof(u32)); }

void sync_start(machine *m) {
  if (!m->named) {
    m->named = calloc(NAMED_BARRIERS, sizeof(barrier)), m->mbar = calloc(MBARRIERS, sizeof(mbarrier));
    for (u32 b = 0; b < NAMED_BARRIERS; b++) m->named[b].gathered = new_knowledge(m);
    for (u32 b = 0; b < MBARRIERS; b++) m->mbar[b].gathered = new_knowledge(m), m->mbar[b].released = new_knowledge(m);
  }
  for (u32 b = 0; b < NAMED_BARRIERS; b++) m->named[b].arrived = 0, wipe(m, m->named[b].gathered);
  for (u32 b = 0; b < MBARRIERS; b++) {
    mbarrier *x = &m->mbar[b];
    x->address = x->alive = x->phase = x->base = 0;
    wipe(m, x->gathered), wipe(m, x->released);
  }
}

void sync_stop(machine *m) {
  if (!m->named) return;
  for (u32 b = 0; b < NAMED_BARRIERS; b++) free(m->named[b].gathered);
  for (u32 b = 0; b < MBARRIERS; b++) free(m->mbar[b].gathered), free(m->mbar[b].released);
  free(m->named), free(m->mbar);
}

void sync_finish(machine *m) {
  for (u32 b = 0; b < NAMED_BARRIERS; b++)
    if (m->named[b].arrived)
      fault(&m->warps[0], -1, b, "barrier", "the kernel ends with %u of %u threads at barrier %u", m->named[b].arrived,
            m->named[b].expected, b);
}

static u32 thread_of(const warp *w, int l) { return w->index * LANES + (u32)l; }

static void wake(machine *m, int at_mbarrier, u32 which, const u32 *knowledge) {
  for (u32 k = 0; k < m->num_warps; k++) {
    warp *w = &m->warps[k];
    EACH_LANE(l, w->stopped) {
      if (w->at_mbarrier[l] != at_mbarrier || w->waits_for[l] != which) continue;
      w->stopped &= ~(1u << l);
      if (knowledge) learn(m, thread_of(w, l), knowledge);
    }
  }
}

// Sources: the barrier, [how many threads].
static int named_barrier(warp *w, const insn *i, u32 m) {
  machine *M = w->m;
  int first = first_lane(m);
  if (m != w->live) fault(w, first, 0, "divergence", "a barrier is reached by lanes %08x of %08x", m, w->live);
  u32 which = r32(w, src(i, 0))[first], count = i->num_src > 1 ? r32(w, src(i, 1))[first] : M->num_threads;
  if (which >= NAMED_BARRIERS) fault(w, first, 0, "barrier", "there is no barrier %u", which);
  if (count % LANES || !count || count > M->num_threads)
    fault(w, first, 0, "barrier", "barrier %u of %u threads in a CTA of %u", which, count, M->num_threads);
  barrier *b = &M->named[which];
  if (b->arrived && b->expected != count)
    fault(w, first, 0, "barrier", "barrier %u is awaited for %u threads and for %u", which, b->expected, count);
  b->expected = count, b->arrived += LANES;
  EACH_LANE(l, m) {
    publish(M, thread_of(w, l), b->gathered);
    if (i->flags & F_ARRIVE_ONLY) continue;
    w->stopped |= 1u << l, w->waits_for[l] = which, w->at_mbarrier[l] = 0;
  }
  tick(M, w->index);
  if (b->arrived > count) fault(w, first, 0, "barrier", "more threads at barrier %u than its %u", which, count);
  if (b->arrived == count) wake(M, 0, which, b->gathered), b->arrived = 0, wipe(M, b->gathered);
  return NEXT;
}

static int warp_barrier(warp *w, const insn *i, u32 m) {
  u32 wanted = r32(w, src(i, 0))[first_lane(m)];
  if (wanted != m) fault(w, first_lane(m), 0, "divergence", "bar.warp.sync of lanes %08x is run by %08x", wanted, m);
  warp_sync(w->m, w->index, m);
  return NEXT;
}

static int async_fence(warp *w, const insn *i, u32 m) {
  (void)i;
  EACH_LANE(l, m) proxy_fence(w->m, thread_of(w, l));
  tick(w->m, w->index);
  return NEXT;
}

u32 mbarrier_slot(warp *w, int lane, u32 address) {
  for (u32 b = 0; b < MBARRIERS; b++)
    if (w->m->mbar[b].alive && w->m->mbar[b].address == address) return b;
  fault(w, lane, address, "barrier", "there is no mbarrier at this address");
}

static void settle(warp *w, int lane, mbarrier *b) {
  machine *m = w->m;
  if (b->pending < 0) fault(w, lane, b->address, "barrier", "more arrivals than the mbarrier's %u", b->expected);
  if (b->pending || b->bytes) return;
  b->phase++, b->pending = b->expected;
  merge(m, b->released, b->gathered);
  set_knowledge(m, b->released, mbarrier_actor(m, (u32)(b - m->mbar)), b->base + b->phase);
  wipe(m, b->gathered);
  wake(m, 1, b->address, NULL);
}

static void touch(warp *w, const insn *i, int l, u32 address) {  // whoever uses it must know that it was set up
  u64 bytes;
  shared_read(w, l, address, 8, 8, pc_of(w, i), &bytes);
  if (bytes != MBARRIER) fault(w, l, address, "barrier", "an mbarrier was overwritten with data");
  w->m->mbar[mbarrier_slot(w, l, address)].used = 1;
}

static int mbarrier_init(warp *w, const insn *i, u32 m) {
  const u32 *at = r32(w, src(i, 0)), *count = r32(w, src(i, 1));
  EACH_LANE(l, m) {
    u32 address = at[l] + (u32)i->imm, k = 0;
    u64 bytes = MBARRIER;
    mbarrier *all = w->m->mbar;
    shared_write_alone(w, l, address, 8, pc_of(w, i), &bytes);
    while (k < MBARRIERS && all[k].address && all[k].address != address) k++;
    if (k == MBARRIERS) fault(w, l, address, "barrier", "more than %d mbarriers", MBARRIERS);
    if (all[k].alive && all[k].used) fault(w, l, address, "barrier", "an mbarrier that was used is already here");
    mbarrier *b = &all[k];
    b->address = address, b->alive = 1, b->used = 0, b->expected = count[l], b->pending = count[l], b->bytes = 0;
    b->base += b->phase, b->phase = 0;
  }
  return NEXT;
}

static int mbarrier_inval(warp *w, const insn *i, u32 m) {
  const u32 *at = r32(w, src(i, 0));
  EACH_LANE(l, m) {
    u32 address = at[l] + (u32)i->imm;
    u64 zero = 0;
    w->m->mbar[mbarrier_slot(w, l, address)].alive = 0;
    shared_write_alone(w, l, address, 8, pc_of(w, i), &zero);
  }
  return NEXT;
}

// Sources: the barrier, [bytes to expect, or arrivals]. flags: F_ARRIVE_ONLY expects nothing, F_ALL does not arrive.
static int mbarrier_arrive(warp *w, const insn *i, u32 m) {
  const u32 *at = r32(w, src(i, 0)), *number = i->num_src > 1 ? r32(w, src(i, 1)) : NULL;
  EACH_LANE(l, m) {
    u32 address = at[l] + (u32)i->imm;
    mbarrier *b = &w->m->mbar[mbarrier_slot(w, l, address)];
    touch(w, i, l, address);
    publish(w->m, thread_of(w, l), b->gathered);
    tick(w->m, w->index);
    if (!(i->flags & F_ARRIVE_ONLY)) b->bytes += number[l];
    if (!(i->flags & F_ALL)) b->pending -= i->flags & F_ARRIVE_ONLY && number ? number[l] : 1;
    settle(w, l, b);
  }
  return NEXT;
}

static int mbarrier_wait(warp *w, const insn *i, u32 m) {
  const u32 *at = r32(w, src(i, 0)), *parity = r32(w, src(i, 1));
  u32 *D = r32(w, dst(i, 0));
  EACH_LANE(l, m) {
    u32 address = at[l] + (u32)i->imm;
    mbarrier *b = &w->m->mbar[mbarrier_slot(w, l, address)];
    touch(w, i, l, address);
    D[l] = (b->phase & 1) != (parity[l] & 1);
    if (D[l]) learn(w->m, thread_of(w, l), b->released);
    else w->stopped |= 1u << l, w->waits_for[l] = address, w->at_mbarrier[l] = 1;
  }
  return NEXT;
}

void mbarrier_arrived_bytes(warp *w, int lane, u32 address, u32 bytes, u32 *actor, u32 *clock) {
  (void)bytes;
  u32 slot = mbarrier_slot(w, lane, address);
  *actor = mbarrier_actor(w->m, slot), *clock = w->m->mbar[slot].base + w->m->mbar[slot].phase + 1;
}

void mbarrier_landed(warp *w, int lane, u32 slot, u32 bytes) {
  w->m->mbar[slot].bytes -= bytes;
  settle(w, lane, &w->m->mbar[slot]);
}

const char *waiting(const machine *m, char *into, size_t room) {
  size_t at = (size_t)snprintf(into, room, "nobody can go on:");
  for (u32 k = 0; k < m->num_warps && at < room; k++) {
    const warp *w = &m->warps[k];
    u32 done = 0;
    EACH_LANE(l, w->live & w->stopped) {
      if (done && w->waits_for[l] == w->waits_for[first_lane(w->live)]) continue;
      done = 1;
      at += (size_t)snprintf(into + at, at < room ? room - at : 0, " warp %u at %s %#x of instruction %u;", k,
                             w->at_mbarrier[l] ? "mbarrier" : "barrier", w->waits_for[l], w->pc[l]);
      if (at >= room) break;
    }
  }
  return into;
}

TABLE(sync_ops) = {{"bar", named_barrier}, {"bar.warp", warp_barrier}, {"fence.proxy.async", async_fence},
                   {"mbarrier.init", mbarrier_init}, {"mbarrier.inval", mbarrier_inval},
                   {"mbarrier.arrive", mbarrier_arrive}, {"mbarrier.wait", mbarrier_wait}, {NULL, NULL}};
