/* Max pooling of windows over a pyramid of bins, and its gradient. cpu.py compiles this file and calls it with ctypes.

   The loops process 16 channels at a time as one vector. A level whose side divides a finer level's side is merged from
   the finer level's bins (each bin is a union of finer bins), so for most pyramids, the map is read only once. Results
   equal those of adaptive_max_pool2d bit for bit: in row-major order, the first of several equal cells wins, but the
   last of several cells that hold NaN.

   The file includes itself once per element type, which compiles the part below #else for that type. */

#ifndef ELEMENT

#include "lanes.h"

#define BLOCKS 16 /* maximum number of channel vectors that are pooled together */
#define MAX_LEVELS 64

typedef struct {
  int64_t channels, height, width;
  int64_t image_step, channel_step, row_step, col_step; /* strides of the map, in elements */
  int64_t levels, bins;                                  /* bins: total over all levels */
  int64_t side[MAX_LEVELS], parent[MAX_LEVELS];          /* parent: level to merge from, or -1 to read the map */
  int64_t order[MAX_LEVELS], start[MAX_LEVELS];          /* order: parents first; start: each level's first bin */
} Plan;

typedef struct {
  int64_t image, left, top, width, height;
} Window;

/* Return window r, or all of map r if windows is NULL. */
static inline Window window(const Plan *plan, const int32_t *windows, int64_t r) {
  if (!windows) return (Window){r, 0, 0, plan->width, plan->height};
  const int32_t *w = windows + 5 * r;
  return (Window){w[0], w[1], w[2], w[3] - w[1], w[4] - w[2]};
}

#define ELEMENT float
#define WIDE float
#define MASK int32_t
#define WIDEN(x) (x)
#define ROUND(x) (x)
#define NAME(f) f##_float32
#include "native.c"

#define ELEMENT double
#define WIDE double
#define MASK int64_t
#define WIDEN(x) (x)
#define ROUND(x) (x)
#define NAME(f) f##_float64
#include "native.c"

#define ELEMENT uint16_t
#define WIDE float
#define MASK int32_t
#define WIDEN(x) widen_bf16(x)
#define ROUND(x) round_bf16(x)
#define NAME(f) f##_bfloat16
#include "native.c"

#else

typedef WIDE NAME(Values) __attribute__((vector_size(LANES * sizeof(WIDE))));
typedef MASK NAME(Mask) __attribute__((vector_size(LANES * sizeof(WIDE)))); /* all ones where a comparison holds */

static inline NAME(Values) NAME(pick)(NAME(Mask) take, NAME(Values) a, NAME(Values) b) {
  return (NAME(Values))(((NAME(Mask))a & take) | ((NAME(Mask))b & ~take));
}

/* Find the maxima of the bin [top, bottom) x [left, right), and their cells, for the LANES channels at x. */
static void NAME(scan)(const ELEMENT *x, int64_t row_step, int64_t col_step, int64_t width, int64_t top, int64_t bottom,
                       int64_t left, int64_t right, NAME(Values) *best_out, Cells *cell_out) {
  NAME(Values) best = NAME(load)(x + top * row_step + left * col_step);
  Cells cell = (Cells){0} + (int32_t)(top * width + left);
  for (int64_t row = top; row < bottom; row++) {
    for (int64_t col = left; col < right; col++) {
      const NAME(Values) v = NAME(load)(x + row * row_step + col * col_step);
      const NAME(Mask) take = (v > best) | (v != v);
      best = NAME(pick)(take, v, best);
      const Cells taken = __builtin_convertvector(take, Cells);
      cell = ((Cells){0} + (int32_t)(row * width + col)) & taken | cell & ~taken;
    }
  }
  *best_out = best, *cell_out = cell;
}

/* Like scan, but for `n` adjacent vectors and without finding the cells. */
static inline __attribute__((always_inline)) void NAME(scan_values)(const int n, const ELEMENT *x, int64_t row_step,
                                                                     int64_t col_step, int64_t top, int64_t bottom,
                                                                     int64_t left, int64_t right,
                                                                     NAME(Values) *best_out) {
  NAME(Values) best[4];
  for (int v = 0; v < n; v++) best[v] = NAME(load)(x + top * row_step + left * col_step + v * LANES);
  for (int64_t row = top; row < bottom; row++) {
    for (int64_t col = left; col < right; col++) {
      for (int v = 0; v < n; v++) {
        const NAME(Values) here = NAME(load)(x + row * row_step + col * col_step + v * LANES);
        best[v] = NAME(pick)((here > best[v]) | (here != here), here, best[v]);
      }
    }
  }
  for (int v = 0; v < n; v++) best_out[v] = best[v];
}

/* Merge the k x k bins of a finer level that make up one bin. The finer level has `side` bins per row, and consecutive
   bins are `blocks` vectors apart. */
static void NAME(merge)(const NAME(Values) *best_in, const Cells *cell_in, int64_t side, int64_t k, int64_t blocks,
                        NAME(Values) *best_out, Cells *cell_out, int cells) {
  NAME(Values) best = best_in[0];
  Cells cell = cell_in[0];
  for (int64_t row = 0; row < k; row++) {
    for (int64_t col = 0; col < k; col++) {
      const NAME(Values) v = best_in[(row * side + col) * blocks];
      if (!cells) {
        best = NAME(pick)((v > best) | (v != v), v, best);
        continue;
      }
      const Cells c = cell_in[(row * side + col) * blocks];
      const NAME(Mask) earlier = __builtin_convertvector(c < cell, NAME(Mask)), later = ~earlier;
      const NAME(Mask) take = (v > best) | ((v == best) & earlier) | ((v != v) & ((best == best) | later));
      best = NAME(pick)(take, v, best);
      const Cells taken = __builtin_convertvector(take, Cells);
      cell = c & taken | cell & ~taken;
    }
  }
  *best_out = best, *cell_out = cell;
}

/* Pool one window of the LANES * blocks channels that are adjacent in memory at x. Write best and cell bin by bin. */
static void NAME(pyramid)(const Plan *plan, const ELEMENT *x, int64_t row_step, int64_t col_step, int64_t height,
                          int64_t width, int64_t blocks, NAME(Values) *best, Cells *cell, int cells) {
  for (int64_t step = 0; step < plan->levels; step++) {
    const int64_t level = plan->order[step], n = plan->side[level], parent = plan->parent[level];
    for (int64_t i = 0; i < n; i++) {
      for (int64_t j = 0; j < n; j++) {
        const int64_t bin = (plan->start[level] + i * n + j) * blocks;
        const int64_t top = i * height / n, bottom = ((i + 1) * height + n - 1) / n;
        const int64_t left = j * width / n, right = ((j + 1) * width + n - 1) / n;
        int64_t v = 0;
        if (parent < 0 && !cells)
          for (; v + 4 <= blocks; v += 4)
            NAME(scan_values)(4, x + v * LANES, row_step, col_step, top, bottom, left, right, best + bin + v);
        for (; v < blocks; v++) {
          if (parent >= 0) {
            const int64_t side = plan->side[parent], k = side / n;
            const int64_t from = (plan->start[parent] + i * k * side + j * k) * blocks + v;
            NAME(merge)(best + from, cell + from, side, k, blocks, best + bin + v, cell + bin + v, cells);
          } else if (cells) {
            NAME(scan)(x + v * LANES, row_step, col_step, plan->width, top, bottom, left, right, best + bin + v,
                       cell + bin + v);
          } else {
            NAME(scan_values)(1, x + v * LANES, row_step, col_step, top, bottom, left, right, best + bin + v);
          }
        }
      }
    }
  }
}

static int NAME(forward_part)(const Plan *plan, const ELEMENT *x, const int32_t *windows, int64_t first, int64_t last,
                              ELEMENT *out, int32_t *cells) {
  const int64_t C = plan->channels, M = plan->bins;
  int64_t area = 0;
  for (int64_t r = first; r < last; r++) {
    const Window w = window(plan, windows, r);
    area = w.height * w.width > area ? w.height * w.width : area;
  }
  NAME(Values) *best = aligned_alloc(sizeof *best, M * BLOCKS * sizeof *best);
  Cells *cell = aligned_alloc(sizeof *cell, M * BLOCKS * sizeof *cell);
  ELEMENT *tile = calloc((area + 1) * LANES, sizeof(ELEMENT));
  if (!best || !cell || !tile) {
    free(best), free(cell), free(tile);
    return 1;
  }
  for (int64_t r = first; r < last; r++) {
    const Window w = window(plan, windows, r);
    const ELEMENT *image = x + w.image * plan->image_step + w.top * plan->row_step + w.left * plan->col_step;
    for (int64_t c = 0, count; c < C; c += count) {
      const ELEMENT *here = image + c * plan->channel_step;
      int64_t blocks = plan->channel_step == 1 ? (C - c) / LANES : 0;
      blocks = blocks > BLOCKS ? BLOCKS : blocks;
      count = blocks * LANES;
      if (blocks) {
        NAME(pyramid)(plan, here, plan->row_step, plan->col_step, w.height, w.width, blocks, best, cell, cells != NULL);
      } else { /* copy up to LANES channels into a tile where they are adjacent */
        count = C - c < LANES ? C - c : LANES, blocks = 1;
        for (int64_t l = 0; l < count; l++) {
          const ELEMENT *from = here + l * plan->channel_step;
          ELEMENT *to = tile + l;
          for (int64_t row = 0; row < w.height; row++)
            for (int64_t col = 0; col < w.width; col++, to += LANES)
              *to = from[row * plan->row_step + col * plan->col_step];
        }
        NAME(pyramid)(plan, tile, w.width * LANES, LANES, w.height, w.width, 1, best, cell, cells != NULL);
      }
      const int32_t corner = (int32_t)(w.top * plan->width + w.left);
      for (int64_t level = 0; level < plan->levels; level++) {
        const int64_t start = plan->start[level], k = plan->side[level] * plan->side[level];
        for (int64_t v = 0; v < blocks; v++) {
          const int64_t from = start * blocks + v, at = r * C * M + C * start + (c + v * LANES) * k;
          const int64_t left = C - c - v * LANES, some = left < LANES ? left : LANES;
          NAME(put)(best + from, blocks, k, some, left <= LANES, out + at);
          if (cells) put(cell + from, blocks, k, some, left <= LANES, corner, 0, (char *)(cells + at));
        }
      }
    }
  }
  free(best), free(cell), free(tile);
  return 0;
}

static int NAME(backward_part)(const Plan *plan, const ELEMENT *grad, const int32_t *cells, const int64_t *rows,
                               int64_t first, int64_t last, ELEMENT *out) {
  const int64_t C = plan->channels, M = plan->bins, area = plan->height * plan->width;
  const int apart = plan->channel_step != 1; /* contiguous maps: the cells of a channel are adjacent */
  const int64_t most = C < 4 * LANES ? C : 4 * LANES, step = apart ? 1 : most, lane_step = apart ? area : 1;
  WIDE *tile = malloc((area + 1) * most * sizeof(WIDE));
  if (!tile) return 1;
  for (int64_t image = first; image < last; image++) {
    ELEMENT *to = out + image * plan->image_step;
    for (int64_t c = 0; c < C; c += most) {
      const int64_t count = C - c < most ? C - c : most;
      memset(tile, 0, area * most * sizeof(WIDE));
      for (int64_t r = rows[image]; r < rows[image + 1]; r++) {
        for (int64_t level = 0; level < plan->levels; level++) {
          const int64_t start = plan->start[level], k = plan->side[level] * plan->side[level];
          const int64_t at = r * C * M + C * start + c * k;
          for (int64_t l = 0; l < count; l++)
            for (int64_t b = 0; b < k; b++)
              tile[cells[at + l * k + b] * step + l * lane_step] += WIDEN(grad[at + l * k + b]);
        }
      }
      if (apart)
        for (int64_t i = 0; i < count * area; i++) to[c * area + i] = ROUND(tile[i]);
      else
        for (int64_t i = 0; i < area; i++)
          for (int64_t l = 0; l < count; l++) to[i * C + c + l] = ROUND(tile[i * most + l]);
    }
  }
  free(tile);
  return 0;
}

/* Pool `count` windows (image, left, top, right, bottom), or the first `count` maps if windows is NULL, with `threads`
   threads. out and cells have shape (count, channels * bins). cells receives the row-major index of each maximum in its
   map and may be NULL. Returns 0, or 1 if out of memory. */
int NAME(forward)(const Plan *plan, const ELEMENT *x, const int32_t *windows, int64_t count, int64_t threads,
                  ELEMENT *out, int32_t *cells) {
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (int64_t part = 0; part < threads; part++)
    failed |= NAME(forward_part)(plan, x, windows, count * part / threads, count * (part + 1) / threads, out, cells);
  return failed;
}

/* Fill `out` with the gradient of the maps of `count` images. `out` is contiguous or channels-last (see channel_step),
   and every element is written. `grad` is the gradient of the maxima. Windows are sorted by image: image i has the
   windows rows[i] to rows[i + 1] - 1. Sums run in the order of windows and bins and are rounded once. Returns 0, or 1
   if out of memory. */
int NAME(backward)(const Plan *plan, const ELEMENT *grad, const int32_t *cells, const int64_t *rows, int64_t count,
                   int64_t threads, ELEMENT *out) {
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (int64_t part = 0; part < threads; part++)
    failed |= NAME(backward_part)(plan, grad, cells, rows, count * part / threads, count * (part + 1) / threads, out);
  return failed;
}

#undef ELEMENT
#undef WIDE
#undef MASK
#undef WIDEN
#undef ROUND
#undef NAME
#endif
