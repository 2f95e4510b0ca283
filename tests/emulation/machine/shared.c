// Shared memory, and of each byte: was it written, by whom and when, who read it since, is a copy on its way to it.
//
// A chunk of 16 bytes that were always used together has one record; one that was used in parts has sixteen.
#include <stdlib.h>
#include "machine.h"

enum { CHUNK = 16, NOBODY = 0xffff, MANY = 0xfffe };
enum { WRITTEN = 1, FLIGHT = 2, BY_ASYNC_PROXY = 4 };

typedef struct { u32 clock, list; u16 actor; } who;  // one, nobody, or many in a list
typedef struct { who writer, reader; u32 write_pc, read_pc, step; u16 in_use; u8 flags; } record;
typedef struct { u32 clock, lanes; } seen;

struct shared {
  u32 size, num_chunks;
  u8 *bytes;
  record *whole;   // [chunks]
  record **parts;  // [chunks], NULL where whole serves
  u32 groups;
  seen *many;      // lists of who it was, [..][groups]
  u32 num_many, room_many, *free_many, num_free, room_free;
};

static const record FRESH = {{0, 0, NOBODY}, {0, 0, NOBODY}, 0, 0, 0, 0, 0};

void shared_start(machine *m, u32 bytes) {
  shared *s = m->shared;
  u32 chunks = (bytes + CHUNK - 1) / CHUNK;
  if (!s || s->size != bytes) {
    shared_stop(m);
    s = m->shared = calloc(1, sizeof *s);
    s->size = bytes, s->num_chunks = chunks;
    s->bytes = malloc(chunks * CHUNK + 1);
    s->whole = malloc((chunks + 1) * sizeof(record)), s->parts = calloc(chunks + 1, sizeof(record *));
    s->groups = m->num_warps * 2 + MBARRIERS;
  }
  memset(s->bytes, 0xa5, chunks * CHUNK);
  for (u32 c = 0; c < chunks; c++) {
    s->whole[c] = FRESH;
    free(s->parts[c]), s->parts[c] = NULL;
  }
  s->num_many = s->num_free = 0;
}

void shared_stop(machine *m) {
  shared *s = m->shared;
  if (!s) return;
  for (u32 c = 0; c < s->num_chunks; c++) free(s->parts[c]);
  free(s->bytes), free(s->whole), free(s->parts), free(s->many), free(s->free_many), free(s), m->shared = NULL;
}

static seen *list_of(shared *s, u32 k) { return s->many + (size_t)k * s->groups; }

static u32 new_list(shared *s) {
  u32 k;
  if (s->num_free) k = s->free_many[--s->num_free];
  else {
    if (s->num_many == s->room_many) {
      s->room_many = s->room_many ? 2 * s->room_many : 256;
      s->many = realloc(s->many, (size_t)s->room_many * s->groups * sizeof(seen));
    }
    k = s->num_many++;
  }
  memset(list_of(s, k), 0, s->groups * sizeof(seen));
  return k;
}

static void drop_list(shared *s, u32 k) {
  if (s->num_free == s->room_free) {
    s->room_free = s->room_free ? 2 * s->room_free : 256;
    s->free_many = realloc(s->free_many, s->room_free * sizeof(u32));
  }
  s->free_many[s->num_free++] = k;
}

static void forget(shared *s, who *w) {
  if (w->actor == MANY) drop_list(s, w->list);
  w->actor = NOBODY;
}

static who copy_of(shared *s, who w) {
  if (w.actor != MANY) return w;
  who made = {w.clock, new_list(s), MANY};
  memcpy(list_of(s, made.list), list_of(s, w.list), s->groups * sizeof(seen));
  return made;
}

u8 *shared_at(warp *w, int lane, u32 address, u32 size, u32 align) {
  shared *s = w->m->shared;
  if (address % align) fault(w, lane, address, "misaligned", "shared address is no multiple of %u", align);
  if (address < SHARED_BASE || address - SHARED_BASE + size > s->size)
    fault(w, lane, address, "bounds", "%u bytes outside of the CTA's %u bytes of shared memory", size, s->size);
  return s->bytes + (address - SHARED_BASE);
}

// The records of [offset, offset + size) within one chunk; splits it where only a part of it is meant.
static record *records(shared *s, u32 offset, u32 size, u32 *num) {
  u32 c = offset / CHUNK;
  record *parts = s->parts[c];
  if (!parts && size == CHUNK) return *num = 1, &s->whole[c];
  if (!parts) {
    parts = s->parts[c] = malloc(CHUNK * sizeof(record));
    for (u32 b = 0; b < CHUNK; b++) {
      parts[b] = s->whole[c];
      if (b) parts[b].reader = copy_of(s, parts[b].reader), parts[b].writer = copy_of(s, parts[b].writer);
    }
  }
  return *num = size, parts + offset % CHUNK;
}

static void join_chunk(shared *s, u32 offset, u32 size) {
  u32 c = offset / CHUNK;
  record *parts = s->parts[c];
  if (!parts || size != CHUNK) return;
  s->whole[c] = parts[0];
  free(parts), s->parts[c] = NULL;
}

#define EACH_CHUNK(at, part, address, size)                                                      \
  for (u32 at = (address) - SHARED_BASE, end_ = at + (size), part; at < end_; at += part)        \
    if ((part = CHUNK - at % CHUNK < end_ - at ? CHUNK - at % CHUNK : end_ - at), 1)

static u32 thread_of(const warp *w, int lane) { return w->index * LANES + (u32)lane; }

// Whether all of them come before what a thread does now: by a proxy fence, or at all.
static int before(machine *m, u32 thread, const who *x, int through_fence) {
  int (*known)(const machine *, u32, u32, u32) = through_fence ? fenced : ordered;
  if (x->actor == NOBODY) return 1;
  if (x->actor != MANY) return known(m, thread, x->actor, x->clock);
  const seen *list = list_of(m->shared, x->list);
  for (u32 g = 0; g < m->shared->groups; g++) {
    if (!list[g].lanes) continue;
    if (!through_fence && group_ordered(m, thread, g, list[g].lanes, list[g].clock)) continue;
    if (!through_fence) return 0;
    EACH_LANE(l, list[g].lanes) if (!fenced(m, thread, actor_of(m, g, (u32)l), list[g].clock)) return 0;
  }
  return 1;
}

static void join_in(machine *m, who *x, u32 thread, u32 actor, u32 clock) {
  shared *s = m->shared;
  if (x->actor == NOBODY || (x->actor != MANY && ordered(m, thread, x->actor, x->clock))) {
    x->actor = (u16)actor, x->clock = clock;
    return;
  }
  u32 group = group_of(m, actor), lane = actor < m->num_threads ? actor % LANES : 0;
  if (x->actor != MANY) {
    u32 k = new_list(s), lane_before = x->actor < m->num_threads ? x->actor % LANES : 0;
    list_of(s, k)[group_of(m, x->actor)] = (seen){x->clock, 1u << lane_before};
    x->actor = MANY, x->list = k;
  }
  seen *mine = &list_of(s, x->list)[group];
  mine->clock = mine->clock > clock ? mine->clock : clock, mine->lanes |= 1u << lane;
}

static void check_written(warp *w, int lane, u32 address, const record *r, const char *race) {
  if (r->flags & FLIGHT)
    fault_with(w, lane, address, r->writer.actor, r->write_pc, "flight", "uses shared memory to which a copy is on its way");
  if (!(r->flags & WRITTEN)) fault(w, lane, address, "uninitialised", "reads shared memory that was never written");
  if (!before(w->m, thread_of(w, lane), &r->writer, 0))
    fault_with(w, lane, address, r->writer.actor, r->write_pc, "race", "%s", race);
}

void shared_read(warp *w, int lane, u32 address, u32 size, u32 align, u32 pc, void *into) {
  memcpy(into, shared_at(w, lane, address, size, align), size);
  machine *m = w->m;
  u32 thread = thread_of(w, lane), clock = clock_of(m, thread);
  EACH_CHUNK(at, part, address, size) {
    u32 num;
    record *r = records(m->shared, at, part, &num);
    for (u32 k = 0; k < num; k++, r++) {
      check_written(w, lane, SHARED_BASE + at + k, r,
                    "reads shared memory that another wrote with nothing between that orders them");
      join_in(m, &r->reader, thread, thread, clock), r->read_pc = pc;
    }
  }
}

// The same bytes once more are no race: a layout with several owners of a value stores it by all of them.
static void check_free(warp *w, int lane, u32 address, const record *r, int same, u8 byte) {
  machine *m = w->m;
  u32 thread = thread_of(w, lane);
  if (r->in_use)
    fault_with(w, lane, address, NOBODY, r->read_pc, "operand", "overwrites what a wgmma or a bulk copy still reads: no wait");
  if (r->flags & FLIGHT)
    fault_with(w, lane, address, r->writer.actor, r->write_pc, "flight", "overwrites shared memory to which a copy is on its way");
  if (!same && !before(m, thread, &r->writer, 0))
    fault_with(w, lane, address, r->writer.actor, r->write_pc, "race",
               "overwrites %02x that another wrote to shared memory by %02x with nothing between that orders them",
               m->shared->bytes[address - SHARED_BASE], byte);
  if (!before(m, thread, &r->reader, 0))
    fault_with(w, lane, address, r->reader.actor, r->read_pc, "race",
               "overwrites shared memory that another read with nothing between that orders them");
}

static int by_warp(const warp *w, const record *r) {  // the store's own warp alone
  const machine *m = w->m;
  if (r->writer.actor != MANY) return r->writer.actor < m->num_threads && r->writer.actor / LANES == w->index;
  const seen *list = list_of(m->shared, r->writer.list);
  for (u32 g = 0; g < m->shared->groups; g++)
    if (list[g].lanes && g != w->index) return 0;
  return 1;
}

// from: what is written, NULL where that is not known yet.
static void put(warp *w, int lane, u32 address, u32 size, u32 pc, u32 actor, u32 clock, u8 flags, const u8 *from) {
  machine *m = w->m;
  shared *s = m->shared;
  EACH_CHUNK(at, part, address, size) {
    u32 num;
    record *r = records(s, at, part, &num);
    for (u32 k = 0; k < num; k++, r++) {
      u32 length = num == 1 ? part : 1, offset = at + k - (address - SHARED_BASE);
      int same = from && r->flags == flags && !memcmp(s->bytes + at + k, from + offset, length);
      if (from && !same && r->write_pc == pc && r->step == w->step && by_warp(w, r)) same = 1, m->counts.contested += length;
      check_free(w, lane, SHARED_BASE + at + k, r, same, from ? from[offset] : 0);
      forget(s, &r->reader);
      if (!same) forget(s, &r->writer);
      join_in(m, &r->writer, thread_of(w, lane), actor, clock);
      r->flags = flags, r->write_pc = pc, r->step = w->step;
    }
    join_chunk(s, at, part);
  }
}

void shared_write(warp *w, int lane, u32 address, u32 size, u32 align, u32 pc, const void *from) {
  u8 *bytes = shared_at(w, lane, address, size, align);
  u32 thread = thread_of(w, lane);
  put(w, lane, address, size, pc, thread, clock_of(w->m, thread), WRITTEN, from);
  memcpy(bytes, from, size);
}

void shared_write_alone(warp *w, int lane, u32 address, u32 size, u32 pc, const void *from) {
  u8 *bytes = shared_at(w, lane, address, size, size);
  u32 thread = thread_of(w, lane);
  put(w, lane, address, size, pc, thread, clock_of(w->m, thread), WRITTEN, NULL);
  memcpy(bytes, from, size);
}

void shared_flight(warp *w, int lane, u32 address, u32 size, u32 pc) {
  shared_at(w, lane, address, size, size);
  u32 thread = thread_of(w, lane);
  put(w, lane, address, size, pc, thread, clock_of(w->m, thread), WRITTEN | FLIGHT, NULL);
}

void shared_land(warp *w, int lane, u32 address, u32 size, const void *from) {
  u32 clock = clock_of(w->m, thread_of(w, lane));
  EACH_CHUNK(at, part, address, size) {
    u32 num;
    record *r = records(w->m->shared, at, part, &num);
    for (u32 k = 0; k < num; k++, r++) r->flags = WRITTEN, r->writer.clock = clock;
  }
  memcpy(shared_at(w, lane, address, size, size), from, size);
}

void shared_async_write(warp *w, int lane, u32 address, u32 size, u32 pc, const void *from, u32 actor, u32 clock) {
  u8 *bytes = shared_at(w, lane, address, size, 16);
  put(w, lane, address, size, pc, actor, clock, WRITTEN | BY_ASYNC_PROXY, NULL);
  memcpy(bytes, from, size);
}

void shared_async_read(warp *w, int lane, u32 address, u32 size, u32 pc, void *into) {
  memcpy(into, shared_at(w, lane, address, size, 1), size);
  machine *m = w->m;
  u32 thread = thread_of(w, lane);
  EACH_CHUNK(at, part, address, size) {
    u32 num;
    record *r = records(m->shared, at, part, &num);
    for (u32 k = 0; k < num; k++, r++) {
      u32 here = SHARED_BASE + at + k;
      check_written(w, lane, here, r,
                    "an asynchronous read of shared memory that another wrote with nothing between that orders them");
      if (!(r->flags & BY_ASYNC_PROXY) && !before(m, thread, &r->writer, 1))
        fault_with(w, lane, here, r->writer.actor, r->write_pc, "proxy",
                   "an asynchronous read of what a thread wrote, with no fence.proxy.async between");
      r->in_use++, r->read_pc = pc;
    }
  }
}

void shared_async_done(warp *w, u32 address, u32 size, u32 pc, u32 actor, u32 clock) {
  machine *m = w->m;
  EACH_CHUNK(at, part, address, size) {
    u32 num;
    record *r = records(m->shared, at, part, &num);
    for (u32 k = 0; k < num; k++, r++) {
      r->in_use--;
      join_in(m, &r->reader, w->index * LANES, actor, clock), r->read_pc = pc;
    }
  }
}
