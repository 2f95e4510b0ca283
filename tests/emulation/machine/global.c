// Global memory is the tensors' own: every access lies in one of them, and no program uses what another one wrote.
#include <stdlib.h>
#include "machine.h"

static allocation *find(warp *w, int lane, u64 address, u32 size) {
  machine *m = w->m;
  if (address % size) fault(w, lane, address, "misaligned", "global address is no multiple of %u", size);
  allocation *a = m->alloc + m->last_alloc;
  if (m->num_alloc && address >= a->base && address + size <= a->base + a->size) return a;
  u32 low = 0, high = m->num_alloc;
  while (low < high) {
    u32 middle = (low + high) / 2;
    if (m->alloc[middle].base <= address) low = middle + 1;
    else high = middle;
  }
  a = low ? m->alloc + low - 1 : NULL;
  if (!a || address + size > a->base + a->size)
    fault(w, lane, address, "bounds", "%u bytes outside of every tensor of the launch%s", size,
          a ? "" : ", before the first");
  m->last_alloc = (u32)(a - m->alloc);
  return a;
}

void global_read(warp *w, int lane, u64 address, u32 size, void *into) {
  allocation *a = find(w, lane, address, size);
  u64 at = address - a->base;
  if (a->unwritten)
    for (u32 k = 0; k < size; k++)
      if (a->unwritten[at + k])
        fault(w, lane, address + k, "uninitialised", "reads an output that no kernel has written");
  if (a->owner)
    for (u32 k = 0; k < size; k++)
      if (a->owner[at + k] && a->owner[at + k] != w->m->owner_mark)
        fault(w, lane, address + k, "race", "reads what program %u of the same launch wrote", a->owner[at + k] - 1);
  memcpy(into, (const void *)address, size);
}

void global_write(warp *w, int lane, u64 address, u32 size, const void *from) {
  allocation *a = find(w, lane, address, size);
  u64 at = address - a->base;
  if (!a->owner) a->owner = calloc(a->size, sizeof(u32));
  for (u32 k = 0; k < size; k++) {
    if (a->owner[at + k] && a->owner[at + k] != w->m->owner_mark)
      fault(w, lane, address + k, "race", "overwrites what program %u of the same launch wrote", a->owner[at + k] - 1);
    a->owner[at + k] = w->m->owner_mark;
  }
  if (a->unwritten) memset(a->unwritten + at, 0, size);
  memcpy((void *)address, from, size);
}

void allocation_done(allocation *a) { free(a->owner), a->owner = NULL; }
