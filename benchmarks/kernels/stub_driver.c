// Whom the stub driver of tests/emulation tells of launches and tensor maps, here: nobody, and all went well.
int answer_launch(unsigned long long function, const unsigned *grid, const unsigned *block, unsigned shared,
                  unsigned long long stream, void **params, unsigned attributes) {
  (void)function, (void)grid, (void)block, (void)shared, (void)stream, (void)params, (void)attributes;
  return 0;
}
int answer_encode(void *map, int type, unsigned rank, unsigned long long address, const unsigned long long *sizes,
                  const unsigned long long *strides, const unsigned *box, const unsigned *steps, int interleave,
                  int swizzle, int fill) {
  (void)map, (void)type, (void)rank, (void)address, (void)sizes, (void)strides, (void)box, (void)steps;
  (void)interleave, (void)swizzle, (void)fill;
  return 0;
}
