// One CTA of a compiled kernel, run warp by warp from its decoded PTX.
#ifndef MACHINE_H
#define MACHINE_H
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

enum { LANES = 32, MAX_WARPS = 32, NAMED_BARRIERS = 16, MBARRIERS = 64, SHARED_BASE = 1024, MOST_IN_FLIGHT = 1024 };
enum { NEXT, JUMPED, AGAIN };  // what a handler tells the loop: go on, lanes were sent elsewhere, not advanced

typedef struct machine machine;
typedef struct warp warp;
typedef struct insn insn;
typedef int (*handler)(warp *w, const insn *i, u32 mask);

// Decoded by decode.py, field for field.
struct insn {
  handler run;
  i32 guard;     // register of the predicate, or -1
  i32 negated;   // @!p
  i32 num_dst, num_src;
  const i32 *reg;  // destinations, then sources: units of 128 bytes in a warp's register file
  i64 imm, imm2;   // an address's offset, a count, a branch target: the handler's own
  u32 flags;       // modifiers
  u32 kind;        // what the instruction is counted as
};

enum {  // flags
  F_FTZ = 1, F_TRANS = 8, F_BF16 = 16, F_ARRIVE_ONLY = 32, F_A_IN_REGISTERS = 64, F_ALL = 2048, F_SELECT = 4096, F_SHUFFLE = 8192, F_WIDENED = 16384, F_SIGNED = 32768, F_COPY = 65536, F_PAIR = 131072
};

enum { REG_READ_IN_FLIGHT = 1, REG_WRITE_IN_FLIGHT = 2 };  // of a register, by wgmma

typedef struct {  // copies on their way, by cp.async of one lane
  u32 dst, size, group, pc;
  u8 data[16];
} copy;

typedef struct {
  copy *list;
  u32 count, room, committed;
} copies;

typedef struct bulk { u32 address, group, pc, lane; } bulk;
typedef struct products products;  // wgmma.c

struct warp {
  machine *m;
  u32 *reg;        // [units][LANES]
  u8 *state;       // [units], REG_*
  u32 *defined;    // [units], the lanes in which it has a value; one made of nothing has none
  u32 *half[2];    // [units], the lanes in which this half of a pair has one, where the whole has none
  u8 came_from[LANES];  // of the last shfl, whose value each lane took
  u32 *stamp;      // [units], when a register was last used but by a mov, in this warp's steps
  u32 index, live, stopped;  // lanes that have not returned; lanes at a barrier
  u32 pc[LANES];
  u32 waits_for[LANES];      // address of an mbarrier, or the number of a named barrier, of a stopped lane
  u8 at_mbarrier[LANES];
  u32 step, fenced_step;     // wgmma.fence
  copies async[LANES];
  products *open, *flying;   // wgmma: not committed, committed
  u32 groups;                // committed groups of wgmma
  bulk *bulk;                // 16 bytes each that a bulk store reads
  u32 num_bulk, room_bulk, bulk_groups[LANES];
};

typedef struct { u64 base, size; u8 *unwritten; u32 *owner; } allocation;

enum { COUNT_KINDS = 16 };
enum { K_INT, K_FLOAT, K_SPECIAL, K_CONVERT, K_MOVE, K_GLOBAL_LOAD, K_GLOBAL_STORE, K_SHARED_LOAD, K_SHARED_STORE,
       K_COPY, K_MATRIX, K_SHUFFLE, K_BARRIER, K_BRANCH, K_OTHER };

typedef struct {
  u64 executed[COUNT_KINDS];
  u64 global_requests, global_sectors, global_ideal;
  u64 shared_requests, shared_wavefronts, shared_ideal;
  u64 contested;  // bytes that lanes of one store wrote differently: one of them wins, PTX does not say which
  u64 steps;
} counts;

typedef struct {
  char kind[32], text[400];
  i64 pc, other_pc, thread, other_thread, block;
  u64 address;
} finding;

typedef struct clocks clocks;
typedef struct shared shared;
typedef struct barrier barrier;
typedef struct mbarrier mbarrier;

struct machine {
  const insn *code;
  u32 num_code, num_units, num_warps, num_threads;
  u32 grid[3], block[3];
  u8 *params;
  u64 param_bytes;
  warp warps[MAX_WARPS];
  clocks *clocks;
  shared *shared;
  barrier *named;
  mbarrier *mbar;
  allocation *alloc;
  u32 num_alloc, last_alloc, owner_mark;
  u64 limit;
  counts counts;
  finding finding;
  jmp_buf escape;
  u32 *order;  // the order in which warps get their turns
};

// run.c
_Noreturn void fault(warp *w, int lane, u64 address, const char *kind, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
_Noreturn void fault_with(warp *w, int lane, u64 address, u32 other_actor, u32 other_pc, const char *kind,
                          const char *format, ...) __attribute__((format(printf, 7, 8)));
handler find_handler(const char *name);

typedef struct { const char *name; handler run; } entry;
#define TABLE(name) const entry name[]

static inline u32 *r32(const warp *w, i32 unit) { return w->reg + (size_t)unit * LANES; }
static inline u64 *r64(const warp *w, i32 unit) { return (u64 *)(w->reg + (size_t)unit * LANES); }
static inline i32 dst(const insn *i, int k) { return i->reg[k]; }
static inline i32 src(const insn *i, int k) { return i->reg[i->num_dst + k]; }
static inline float as_float(u32 x) { float f; memcpy(&f, &x, 4); return f; }
static inline u32 as_bits(float f) { u32 x; memcpy(&x, &f, 4); return x; }
static inline u32 pc_of(const warp *w, const insn *i) { return (u32)(i - w->m->code); }
static inline int first_lane(u32 mask) { return __builtin_ctz(mask); }
#define EACH_LANE(l, mask) for (int l = 0; l < LANES; l++) if ((mask) >> l & 1)

// half.c
float half_to_float(u16 h);
u16 float_to_half(float f);
float bf16_to_float(u16 h);
u16 float_to_bf16(float f);

// clocks.c: who knows of whose work. Actors are the threads, then the products of each warp, then the mbarriers.
void clocks_start(machine *m);
void clocks_stop(machine *m);
u32 actors(const machine *m);
u32 products_actor(const machine *m, u32 warp);
u32 mbarrier_actor(const machine *m, u32 slot);
u32 clock_of(const machine *m, u32 thread);
int ordered(const machine *m, u32 thread, u32 actor, u32 clock);
int fenced(const machine *m, u32 thread, u32 actor, u32 clock);
int group_ordered(const machine *m, u32 thread, u32 group, u32 lanes, u32 clock);
u32 group_of(const machine *m, u32 actor);
u32 actor_of(const machine *m, u32 group, u32 lane);
void know(machine *m, u32 thread, u32 actor, u32 clock);
void proxy_fence(machine *m, u32 thread);
u32 *new_knowledge(machine *m);
void publish(machine *m, u32 thread, u32 *into);
void tick(machine *m, u32 warp);  // after a publication: one clock for all of a warp, so that its lanes can be told in one
void learn(machine *m, u32 thread, const u32 *from);
void merge(machine *m, u32 *into, const u32 *from);
void set_knowledge(machine *m, u32 *into, u32 actor, u32 clock);
void warp_sync(machine *m, u32 warp, u32 lanes);

// shared.c
void shared_start(machine *m, u32 bytes);
void shared_stop(machine *m);
u8 *shared_at(warp *w, int lane, u32 address, u32 size, u32 align);
void shared_read(warp *w, int lane, u32 address, u32 size, u32 align, u32 pc, void *into);
void shared_write(warp *w, int lane, u32 address, u32 size, u32 align, u32 pc, const void *from);
void shared_write_alone(warp *w, int lane, u32 address, u32 size, u32 pc, const void *from);  // the same bytes race, too
void shared_flight(warp *w, int lane, u32 address, u32 size, u32 pc);
void shared_land(warp *w, int lane, u32 address, u32 size, const void *from);
void shared_async_write(warp *w, int lane, u32 address, u32 size, u32 pc, const void *from, u32 actor, u32 clock);
void shared_async_read(warp *w, int lane, u32 address, u32 size, u32 pc, void *into);  // begins; ends with:
void shared_async_done(warp *w, u32 address, u32 size, u32 pc, u32 actor, u32 clock);
void count_banks(warp *w, const u32 *address, u32 mask, u32 size);

// global.c
void global_read(warp *w, int lane, u64 address, u32 size, void *into);
void global_write(warp *w, int lane, u64 address, u32 size, const void *from);
void count_sectors(warp *w, const u64 *address, u32 mask, u32 size);

// copies.c, wgmma.c, sync.c: at the end of a CTA
void copies_finish(warp *w);
void products_finish(warp *w);
void bulk_finish(warp *w);
void products_free(warp *w);
void sync_start(machine *m);
void sync_stop(machine *m);
void sync_finish(machine *m);
const char *waiting(const machine *m, char *into, size_t room);
u32 mbarrier_slot(warp *w, int lane, u32 address);
void mbarrier_arrived_bytes(warp *w, int lane, u32 address, u32 bytes, u32 *actor, u32 *clock);
void mbarrier_landed(warp *w, int lane, u32 slot, u32 bytes);

extern const entry integer_ops[], floating_ops[], convert_ops[], access_ops[], copy_ops[], matrix_ops[], wgmma_ops[],
    tensor_ops[], sync_ops[], control_ops[];
#endif
