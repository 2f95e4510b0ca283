// Branches, exits, and what the lanes of a warp exchange.
#include "machine.h"

static int branch(warp *w, const insn *i, u32 m) {
  EACH_LANE(l, m) w->pc[l] = (u32)i->imm;
  return JUMPED;
}

static int branch_indexed(warp *w, const insn *i, u32 m) {  // targets follow the registers: imm2 of them
  const u32 *index = r32(w, src(i, 0));
  const i32 *targets = i->reg + i->num_dst + i->num_src;
  EACH_LANE(l, m) {
    if (index[l] >= i->imm2) fault(w, l, 0, "control", "jumps to entry %u of %lld", index[l], (long long)i->imm2);
    w->pc[l] = (u32)targets[index[l]];
  }
  return JUMPED;
}

static int leave(warp *w, const insn *i, u32 m) {
  (void)i;
  w->live &= ~m;
  return JUMPED;
}

static int nothing(warp *w, const insn *i, u32 m) { (void)w, (void)i, (void)m; return NEXT; }

static int yes(warp *w, const insn *i, u32 m) {  // for faults that are planted: a wait that does not wait
  EACH_LANE(l, m) r32(w, dst(i, 0))[l] = 1;
  return NEXT;
}

_Noreturn static int trap(warp *w, const insn *i, u32 m) {  // to learn whether an instruction is reached
  (void)i;
  fault(w, first_lane(m), 0, "trap", "reached");
}

static void members(warp *w, u32 wanted, u32 m, const char *what) {
  if (wanted != m) fault(w, first_lane(m), 0, "divergence", "%s of lanes %08x is run by lanes %08x", what, wanted, m);
}

// imm: 0 idx, 1 bfly, 2 up, 3 down. Sources: value, lane, clamp, members.
static int shuffle(warp *w, const insn *i, u32 m) {
  const u32 *A = r32(w, src(i, 0)), *B = r32(w, src(i, 1)), *C = r32(w, src(i, 2));
  u32 out[LANES];
  members(w, r32(w, src(i, 3))[first_lane(m)], m, "shfl.sync");
  EACH_LANE(l, m) {
    i32 segment = C[l] >> 8 & 31, clamp = C[l] & 31, by = B[l] & 31, lane = l;
    i32 most = (lane & segment) | (clamp & ~segment), least = lane & segment, from;
    int inside;
    switch (i->imm) {
      case 0: from = least | (by & ~segment), inside = from <= most; break;
      case 1: from = lane ^ by, inside = from <= most; break;
      case 2: from = lane - by, inside = from >= most; break;
      default: from = lane + by, inside = from <= most;
    }
    if (!inside) from = lane;
    if (!(m >> from & 1)) fault(w, l, 0, "divergence", "shfl.sync from lane %d, which takes no part", from);
    out[l] = A[from], w->came_from[l] = (u8)from;
    if (i->num_dst > 1) r32(w, dst(i, 1))[l] = (u32)inside;
  }
  u32 *D = r32(w, dst(i, 0));
  EACH_LANE(l, m) D[l] = out[l];
  return NEXT;
}

static int elect(warp *w, const insn *i, u32 m) {  // destinations: [the lane], whether it is this one
  members(w, r32(w, src(i, 0))[first_lane(m)], m, "elect.sync");
  u32 *P = r32(w, dst(i, i->num_dst - 1));
  EACH_LANE(l, m) {
    P[l] = l == first_lane(m);
    if (i->num_dst > 1) r32(w, dst(i, 0))[l] = (u32)first_lane(m);
  }
  return NEXT;
}

// imm: 0 ballot, 1 any, 2 all.
static int vote(warp *w, const insn *i, u32 m) {
  const u32 *P = r32(w, src(i, 0));
  members(w, r32(w, src(i, 1))[first_lane(m)], m, "vote.sync");
  u32 yes = 0, *D = r32(w, dst(i, 0));
  EACH_LANE(l, m) yes |= (u32)(P[l] != 0) << l;
  EACH_LANE(l, m) D[l] = i->imm == 0 ? yes : i->imm == 1 ? yes != 0 : yes == m;
  return NEXT;
}

// imm: 0 add, 1 min, 2 max, 3 and, 4 or, 5 xor; imm2: signed.
static int reduce(warp *w, const insn *i, u32 m) {
  const u32 *A = r32(w, src(i, 0));
  u32 *D = r32(w, dst(i, 0)), sum = A[first_lane(m)];
  members(w, r32(w, src(i, 1))[first_lane(m)], m, "redux.sync");
  EACH_LANE(l, m & ~(1u << first_lane(m))) {
    int less = i->imm2 ? (i32)A[l] < (i32)sum : A[l] < sum;
    switch (i->imm) {
      case 0: sum += A[l]; break;
      case 1: sum = less ? A[l] : sum; break;
      case 2: sum = less ? sum : A[l]; break;
      case 3: sum &= A[l]; break;
      case 4: sum |= A[l]; break;
      default: sum ^= A[l];
    }
  }
  EACH_LANE(l, m) D[l] = sum;
  return NEXT;
}

TABLE(control_ops) = {{"bra", branch}, {"brx.idx", branch_indexed}, {"ret", leave}, {"nothing", nothing}, {"yes", yes}, {"trap", trap},
                      {"shfl", shuffle}, {"elect", elect}, {"vote", vote}, {"redux", reduce}, {NULL, NULL}};
