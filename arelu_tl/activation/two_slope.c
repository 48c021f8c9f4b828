/* AReLU on float32 maps whose elements lie one behind the other: one pass over memory forward, one backward.
 *
 * The sums are taken block by block and then in the order of the blocks, so that they do not depend on the number of threads.
 */
#include <stddef.h>

/* Elements taken at a time: long enough to hide the start of a loop, short enough that sums in float keep their digits. */
enum { BLOCK = 4096 };

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

ptrdiff_t two_slope_blocks(ptrdiff_t n) { return (n + BLOCK - 1) / BLOCK; }

/* y = min(cap, positive * x) where x >= 0, negative * x elsewhere. y may be x. */
void two_slope_forward(const float *x, float *y, ptrdiff_t n, float positive, float negative, float cap, int threads)
{
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t first = 0; first < n; first += BLOCK) {
        ptrdiff_t last = smaller(first + BLOCK, n);
#pragma omp simd
        for (ptrdiff_t i = first; i < last; i++) {
            float v = x[i] * (x[i] >= 0.0f ? positive : negative);
            y[i] = v > cap ? cap : v;
        }
    }
}

static void block_backward(const float *restrict grad, const float *restrict kept, float *restrict grad_x, int n,
                           float positive, float negative, float gain, float cap, double *restrict sums)
{
    float above = 0.0f, below = 0.0f;
#pragma omp simd reduction(+ : above, below)
    for (int i = 0; i < n; i++) {
        float k = kept[i], g = grad[i];
        g = k * gain >= cap ? 0.0f : g;
        float product = g * k;
        above += k > 0.0f ? product : 0.0f;
        below += k > 0.0f ? 0.0f : product;
        g *= k > 0.0f ? positive : negative;
        grad_x[i] = k == 0.0f ? 0.0f : g;
    }
    sums[0] = above;
    sums[1] = below;
}

/* grad_x, and the sums of grad * kept over kept > 0 and over the rest.
 *
 * kept is the input, or the output that has taken its place; kept * gain is the output either way. sums has room for two numbers
 * a block; the first two are the result.
 */
void two_slope_backward(const float *grad, const float *kept, float *grad_x, ptrdiff_t n, float positive, float negative,
                        float gain, float cap, double *sums, int threads)
{
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t block = 0; block < two_slope_blocks(n); block++) {
        ptrdiff_t first = block * BLOCK;
        block_backward(grad + first, kept + first, grad_x + first, (int)smaller(BLOCK, n - first), positive, negative, gain,
                       cap, sums + 2 * block);
    }
    for (ptrdiff_t block = 1; block < two_slope_blocks(n); block++) {
        sums[0] += sums[2 * block];
        sums[1] += sums[2 * block + 1];
    }
}
