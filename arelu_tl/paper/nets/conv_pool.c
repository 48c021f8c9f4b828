/* Convolution without padding, bias and 2 x 2 max pooling as one map, forward and backward, for many small nets at once.
 *
 * An image is (H, H, CI), a net's weight (K, K, CI, CO) and its output (P, P, CO), channels side by side. Net n of `nets` sees the
 * images of set n / share. The pooling takes the first of the largest, and a number that is none before all others. Backward, only
 * the quarter of the convolution that the pooling took has a gradient, and only that quarter is computed.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* As wide as the processor's registers: of wider vectors compilers make poor code. */
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define HALF (BYTES == 64 ? 32 : BYTES)
#define LANES ((int)(BYTES / sizeof(float)))
typedef float lanes __attribute__((vector_size(BYTES)));
/* The same wherever it starts. */
typedef float loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t flags __attribute__((vector_size(BYTES)));
typedef float half __attribute__((vector_size(HALF)));
typedef float half_loose __attribute__((vector_size(HALF), aligned(4), may_alias));
typedef int32_t half_flags __attribute__((vector_size(HALF)));
#define EACH(name, count) _Pragma("GCC unroll 16") for (int name = 0; name < (count); name++)

/* The three blocks of MNIST-Conv, the first for grey and for colour. */
#define CI 1
#define CO 10
#define K 5
#define H 28
#define NAME(pass) pass##_1
#include "conv_pool_body.h"

#define CI 3
#define CO 10
#define K 5
#define H 28
#define NAME(pass) pass##_3
#include "conv_pool_body.h"

#define CI 10
#define CO 20
#define K 5
#define H 12
#define NAME(pass) pass##_10
#include "conv_pool_body.h"

#define CI 20
#define CO 40
#define K 3
#define H 4
#define NAME(pass) pass##_20
#include "conv_pool_body.h"
