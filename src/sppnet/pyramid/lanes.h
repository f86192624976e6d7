/* Vectors of 16 channels for native.c: functions to load them and to write pooled bins channel by channel. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

typedef int32_t Cells __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef double Doubles __attribute__((vector_size(LANES * sizeof(double))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

static inline Floats load_float32(const float *p) {
  Floats x;
  memcpy(&x, p, sizeof x);
  return x;
}

static inline Doubles load_float64(const double *p) {
  Doubles x;
  memcpy(&x, p, sizeof x);
  return x;
}

static inline Floats load_bfloat16(const uint16_t *p) {
  Halves x;
  memcpy(&x, p, sizeof x);
  return (Floats)(__builtin_convertvector(x, Cells) << 16);
}

static inline float widen_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline uint16_t round_bf16(float x) { /* rounds ties to even, as torch does */
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Cells){__VA_ARGS__})
#endif

/* Transpose a 16 x 16 matrix. Each stage rotates the 8-bit index (row, lane) by one bit, so four stages swap row and
   lane. */
static inline void transpose(Cells x[LANES]) {
  for (int stage = 0; stage < 4; stage++) {
    Cells y[LANES];
    for (int i = 0; i < LANES / 2; i++) {
      const Cells a = x[i], b = x[i + LANES / 2];
      y[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      y[2 * i + 1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    memcpy(x, y, sizeof y);
  }
}

/* Write `bins` bins of LANES channels to rows of k elements. Consecutive bins are `apart` vectors apart in `from`. If
   `narrow` (bfloat16), write the upper half of each value; otherwise, write the 32-bit value plus `add`. Whole vectors
   are stored even for fewer than LANES bins. */
static inline __attribute__((always_inline)) void put_vectors(const Cells *from, int64_t apart, int64_t bins, int64_t k,
                                                              int32_t add, const int narrow, char *to) {
  Cells x[LANES];
  for (int64_t i = 0; i < LANES; i++) x[i] = from[(i < bins ? i : 0) * apart] + add;
  transpose(x);
  for (int64_t l = 0; l < LANES; l++) {
    const Halves half = __builtin_convertvector(x[l] >> 16, Halves);
    if (narrow)
      memcpy(to + l * k * 2, &half, sizeof half);
    else
      memcpy(to + l * k * 4, &x[l], sizeof x[l]);
  }
}

/* Write the k bins of a level for `count` <= LANES channels, channel by channel. A vector that holds fewer than LANES
   bins overruns into the next channel, which is written later. For the level's last channels (`last`), nothing is
   written later, so the remainder is stored element by element. */
static inline __attribute__((always_inline)) void put(const Cells *from, int64_t apart, int64_t k, int64_t count, int last,
                                                      int32_t add, const int narrow, char *to) {
  const int size = narrow ? 2 : 4;
  const int64_t whole = count == LANES ? k / LANES * LANES : 0;
  if (count == LANES && !last && k - whole >= LANES / 2) {
    put_vectors(from + whole * apart, apart, k - whole, k, add, narrow, to + whole * size);
  } else {
    const int32_t *flat = (const int32_t *)from; /* indexing into vectors is slow */
    for (int64_t l = 0; l < count; l++) {
      for (int64_t b = whole; b < k; b++) {
        const int32_t x = flat[b * apart * LANES + l];
        if (narrow)
          ((uint16_t *)to)[l * k + b] = (uint16_t)((uint32_t)x >> 16);
        else
          ((int32_t *)to)[l * k + b] = x + add;
      }
    }
  }
  for (int64_t b = 0; b < whole; b += LANES) put_vectors(from + b * apart, apart, LANES, k, add, narrow, to + b * size);
}

static inline void put_float32(const Floats *from, int64_t apart, int64_t k, int64_t count, int last, float *to) {
  put((const Cells *)from, apart, k, count, last, 0, 0, (char *)to);
}

static inline void put_bfloat16(const Floats *from, int64_t apart, int64_t k, int64_t count, int last, uint16_t *to) {
  put((const Cells *)from, apart, k, count, last, 0, 1, (char *)to);
}

static inline void put_float64(const Doubles *from, int64_t apart, int64_t k, int64_t count, int last, double *to) {
  (void)last;
  const double *flat = (const double *)from;
  for (int64_t l = 0; l < count; l++)
    for (int64_t b = 0; b < k; b++) to[l * k + b] = flat[b * apart * LANES + l];
}
