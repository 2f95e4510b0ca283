// How much work a request is for the memory that it goes to.
#include "machine.h"

// Wavefronts of one access: what is wider than 4 bytes goes in halves or quarters of a warp.
void count_banks(warp *w, const u32 *address, u32 mask, u32 size) {
  u32 step = size <= 4 ? LANES : size == 8 ? 16 : 8;
  for (u32 base = 0; base < LANES; base += step) {
    u32 words[32][32], many[32] = {0}, most = 0;
    for (u32 l = base; l < base + step; l++) {
      if (!(mask >> l & 1)) continue;
      for (u32 word = address[l] / 4; word <= (address[l] + size - 1) / 4; word++) {
        u32 bank = word % 32, k = 0;
        while (k < many[bank] && words[bank][k] != word) k++;
        if (k == many[bank]) words[bank][many[bank]++] = word;
        most = many[bank] > most ? many[bank] : most;
      }
    }
    w->m->counts.shared_wavefronts += most;
    w->m->counts.shared_ideal += most > 0;
  }
  w->m->counts.shared_requests++;
}

// Sectors of 32 bytes that one request touches, and how few could hold as many bytes.
void count_sectors(warp *w, const u64 *address, u32 mask, u32 size) {
  u64 sectors[LANES * 2], first[LANES];
  u32 num = 0, distinct = 0;
  EACH_LANE(l, mask) {
    u32 known = 0;
    for (u32 k = 0; k < distinct && !known; k++) known = first[k] == address[l];
    if (!known) first[distinct++] = address[l];
    u64 sector = address[l] / 32;
    u32 k = 0;
    while (k < num && sectors[k] != sector) k++;
    if (k == num) sectors[num++] = sector;
  }
  w->m->counts.global_requests++;
  w->m->counts.global_sectors += num;
  w->m->counts.global_ideal += (distinct * size + 31) / 32;
}
