// Vector clocks: what each thread knows to have happened, and what of it passed a proxy fence.
#include <stdlib.h>
#include "machine.h"

// A vector has two halves of actors() each: seen, and seen through a proxy fence. least[t][w] is the smallest of what
// thread t has seen of warp w, as most questions are answered by that.
struct clocks {
  u32 num;
  u32 *seen;   // [threads][2 * num]
  u32 *least;  // [threads][warps]
};

u32 actors(const machine *m) { return m->num_threads + m->num_warps + MBARRIERS; }
u32 products_actor(const machine *m, u32 warp) { return m->num_threads + warp; }
u32 mbarrier_actor(const machine *m, u32 slot) { return m->num_threads + m->num_warps + slot; }
u32 group_of(const machine *m, u32 actor) {
  return actor < m->num_threads ? actor / LANES : m->num_warps + actor - m->num_threads;
}

u32 actor_of(const machine *m, u32 group, u32 lane) {
  return group < m->num_warps ? group * LANES + lane : m->num_threads + group - m->num_warps;
}

static u32 *row(const machine *m, u32 thread) { return m->clocks->seen + (size_t)thread * 2 * m->clocks->num; }

static void take_least(machine *m, u32 thread) {
  const u32 *r = row(m, thread);
  for (u32 w = 0; w < m->num_warps; w++) {
    u32 low = ~0u;
    for (u32 l = 0; l < LANES; l++) low = r[w * LANES + l] < low ? r[w * LANES + l] : low;
    m->clocks->least[thread * m->num_warps + w] = low;
  }
}

void clocks_start(machine *m) {
  if (!m->clocks) {
    m->clocks = calloc(1, sizeof(clocks));
    m->clocks->num = actors(m);
    m->clocks->seen = malloc((size_t)m->num_threads * 2 * m->clocks->num * sizeof(u32));
    m->clocks->least = malloc((size_t)m->num_threads * m->num_warps * sizeof(u32));
  }
  memset(m->clocks->seen, 0, (size_t)m->num_threads * 2 * m->clocks->num * sizeof(u32));
  memset(m->clocks->least, 0, (size_t)m->num_threads * m->num_warps * sizeof(u32));
  for (u32 t = 0; t < m->num_threads; t++) row(m, t)[t] = 1;
}

void clocks_stop(machine *m) {
  if (!m->clocks) return;
  free(m->clocks->seen), free(m->clocks->least), free(m->clocks);
}

u32 clock_of(const machine *m, u32 thread) { return row(m, thread)[thread]; }

int ordered(const machine *m, u32 thread, u32 actor, u32 clock) {
  if (thread == actor) return 1;
  if (actor < m->num_threads && m->clocks->least[thread * m->num_warps + actor / LANES] >= clock) return 1;
  return row(m, thread)[actor] >= clock;
}

int fenced(const machine *m, u32 thread, u32 actor, u32 clock) {
  return row(m, thread)[m->clocks->num + actor] >= clock;
}

int group_ordered(const machine *m, u32 thread, u32 group, u32 lanes, u32 clock) {
  if (group >= m->num_warps) return row(m, thread)[m->num_threads + group - m->num_warps] >= clock;
  if (m->clocks->least[thread * m->num_warps + group] >= clock) return 1;
  EACH_LANE(l, lanes) {
    u32 actor = group * LANES + l;
    if (actor != thread && row(m, thread)[actor] < clock) return 0;
  }
  return 1;
}

void know(machine *m, u32 thread, u32 actor, u32 clock) {
  u32 *r = row(m, thread);
  if (r[actor] < clock) r[actor] = clock;
}

void proxy_fence(machine *m, u32 thread) {
  u32 *r = row(m, thread), num = m->clocks->num;
  for (u32 a = 0; a < num; a++) r[num + a] = r[num + a] > r[a] ? r[num + a] : r[a];
}

u32 *new_knowledge(machine *m) { return calloc(2 * m->clocks->num, sizeof(u32)); }

void merge(machine *m, u32 *into, const u32 *from) {
  for (u32 a = 0; a < 2 * m->clocks->num; a++) into[a] = into[a] > from[a] ? into[a] : from[a];
}

void publish(machine *m, u32 thread, u32 *into) {
  merge(m, into, row(m, thread));
}

void tick(machine *m, u32 warp) {
  for (u32 t = warp * LANES; t < (warp + 1) * LANES; t++) row(m, t)[t]++;
}

void learn(machine *m, u32 thread, const u32 *from) {
  u32 *r = row(m, thread), own = r[thread];
  merge(m, r, from);
  r[thread] = own;
  take_least(m, thread);
}

void set_knowledge(machine *m, u32 *into, u32 actor, u32 clock) {
  (void)m;
  if (into[actor] < clock) into[actor] = clock;
}

void warp_sync(machine *m, u32 warp, u32 lanes) {
  u32 *all = new_knowledge(m);
  EACH_LANE(l, lanes) publish(m, warp * LANES + l, all);
  tick(m, warp);
  EACH_LANE(l, lanes) learn(m, warp * LANES + l, all);
  free(all);
}
