/* The two-slope map, one pass over memory forward and one backward, for float32, float64 and bfloat16.
 *
 * A map is (outer, channels, inner): element (o, c, i) lies at (o * channels + c) * inner + i. Slopes are one a channel. Where
 * there is one pair for all, the map is (1, 1, n). Sums are taken piece by piece and then in the order of the pieces, so that
 * they do not depend on the number of threads.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Elements of one channel taken at a time: long enough to hide the start of a loop, short enough that sums keep their digits. */
enum { PIECE = 4096 };
/* Where channels lie side by side: how many times over all of them. */
enum { ROWS = 128 };

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t pieces(ptrdiff_t n, ptrdiff_t size) { return (n + size - 1) / size; }

/* Whether neighbours belong to different channels. */
static int side_by_side(ptrdiff_t channels, ptrdiff_t inner) { return channels > 1 && inner == 1; }

/* How many sums a backward pass needs room for. */
ptrdiff_t two_slope_partial(ptrdiff_t outer, ptrdiff_t channels, ptrdiff_t inner)
{
    return side_by_side(channels, inner) ? 2 * channels * pieces(outer, ROWS) : 2 * outer * channels * pieces(inner, PIECE);
}

static float from_bfloat16(uint16_t stored)
{
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the nearest, ties to even; no number stays none. */
static uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7fc0u);
}

#define STORED float
#define NUMBER float
#define NAME(what) what##_float32
#define READ(stored) (stored)
#define WRITE(value) (value)
#include "two_slope_body.h"

#define STORED double
#define NUMBER double
#define NAME(what) what##_float64
#define READ(stored) (stored)
#define WRITE(value) (value)
#include "two_slope_body.h"

#define STORED uint16_t
#define NUMBER float
#define NAME(what) what##_bfloat16
#define READ(stored) from_bfloat16(stored)
#define WRITE(value) to_bfloat16(value)
#include "two_slope_body.h"
