// cp.async: a lane's copies from global to shared memory, on their way until this lane waits for their group.
//
// The bytes are taken when the copy is issued and put down at the wait. Until then nobody may touch them, and after it
// they are that lane's writes: others need a barrier besides.
#include <stdlib.h>
#include "machine.h"

// imm, imm2: offsets of destination and source; sources: dst, src, [bytes taken]; num in flags >> 16.
static int copy_async(warp *w, const insn *i, u32 m) {
  const u32 *to = r32(w, src(i, 0));
  const u64 *from = r64(w, src(i, 1));
  const u32 *taken = i->num_src > 2 ? r32(w, src(i, 2)) : NULL;
  u32 size = i->flags >> 16, reading = 0, addresses[LANES];
  u64 sources[LANES];
  EACH_LANE(l, m) {
    u32 bytes = taken ? taken[l] : size;
    if (bytes > size) fault(w, l, to[l], "copy", "takes %u bytes into a copy of %u", bytes, size);
    copies *c = &w->async[l];
    if (c->count == MOST_IN_FLIGHT) fault(w, l, to[l], "copy", "more than %d copies that nobody waits for", MOST_IN_FLIGHT);
    if (c->count == c->room) c->list = realloc(c->list, (c->room = c->room ? 2 * c->room : 64) * sizeof(copy));
    copy *one = &c->list[c->count++];
    *one = (copy){to[l] + (u32)i->imm, size, c->committed, pc_of(w, i), {0}};
    addresses[l] = one->dst, sources[l] = from[l] + (u64)i->imm2;
    shared_flight(w, l, one->dst, size, one->pc);
    if (sources[l] % size) fault(w, l, sources[l], "misaligned", "global address is no multiple of %u", size);
    for (u32 at = 0; at < bytes;) {  // a part of a copy has any size
      u32 piece = size;
      while (piece > bytes - at || (sources[l] + at) % piece) piece /= 2;
      global_read(w, l, sources[l] + at, piece, one->data + at);
      at += piece;
    }
    if (bytes) reading |= 1u << l;
  }
  if (reading) count_sectors(w, sources, reading, size);
  count_banks(w, addresses, m, size);
  return NEXT;
}

static int commit(warp *w, const insn *i, u32 m) {
  (void)i;
  EACH_LANE(l, m) w->async[l].committed++;
  return NEXT;
}

static void land(warp *w, int l, u32 groups) {  // those of a group below this
  copies *c = &w->async[l];
  u32 done = 0;
  while (done < c->count && c->list[done].group < groups) {
    const copy *one = &c->list[done++];
    shared_land(w, l, one->dst, one->size, one->data);
  }
  memmove(c->list, c->list + done, (c->count - done) * sizeof(copy));
  c->count -= done;
}

static int wait_group(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) {
    u32 committed = w->async[l].committed, keep = (u32)i->imm;
    if (committed > keep) land(w, l, committed - keep);
  }
  return NEXT;
}

static int wait_all(warp *w, const insn *i, u32 m) {
  (void)i;
  EACH_LANE(l, m) land(w, l, ++w->async[l].committed);
  return NEXT;
}

void copies_finish(warp *w) {
  for (int l = 0; l < LANES; l++) w->async[l].count = w->async[l].committed = 0;
}

TABLE(copy_ops) = {{"cp.async", copy_async}, {"cp.async.commit_group", commit}, {"cp.async.wait_group", wait_group},
                   {"cp.async.wait_all", wait_all}, {NULL, NULL}};
