/* Both passes for one number format: STORED in memory, computed and summed in NUMBER. Included by two_slope.c once a format. */

static void NAME(forward_piece)(const STORED *x, STORED *y, ptrdiff_t n, NUMBER positive, NUMBER negative, NUMBER cap)
{
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; i++) {
        NUMBER v = READ(x[i]);
        v *= v >= 0 ? positive : negative;
        y[i] = WRITE(v > cap ? cap : v);
    }
}

static void NAME(forward_row)(const STORED *x, STORED *y, ptrdiff_t n, const NUMBER *positive, const NUMBER *negative, NUMBER cap)
{
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; i++) {
        NUMBER v = READ(x[i]), above = v * positive[i], below = v * negative[i];
        v = v >= 0 ? above : below;
        y[i] = WRITE(v > cap ? cap : v);
    }
}

/* y = min(cap, positive * x) where x >= 0, negative * x elsewhere. y may be x. */
void NAME(two_slope_forward)(const STORED *x, STORED *y, ptrdiff_t outer, ptrdiff_t channels, ptrdiff_t inner,
                             const NUMBER *positive, const NUMBER *negative, double cap, int threads)
{
    (void)threads;
    if (side_by_side(channels, inner)) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (ptrdiff_t row = 0; row < outer; row++)
            NAME(forward_row)(x + row * channels, y + row * channels, channels, positive, negative, (NUMBER)cap);
        return;
    }
    ptrdiff_t each = pieces(inner, PIECE);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t piece = 0; piece < outer * channels * each; piece++) {
        ptrdiff_t row = piece / each, within = piece % each * PIECE, first = row * inner + within;
        NAME(forward_piece)(x + first, y + first, smaller(PIECE, inner - within), positive[row % channels],
                            negative[row % channels], (NUMBER)cap);
    }
}

static void NAME(backward_piece)(const STORED *restrict grad, const STORED *restrict kept, STORED *restrict grad_x, int n,
                                 NUMBER positive, NUMBER negative, NUMBER gain, NUMBER cap, NUMBER *restrict sums)
{
    NUMBER above = 0, below = 0;
#pragma omp simd reduction(+ : above, below)
    for (int i = 0; i < n; i++) {
        NUMBER k = READ(kept[i]), g = READ(grad[i]);
        g = k * gain >= cap ? 0 : g;
        NUMBER product = g * k;
        above += k > 0 ? product : 0;
        below += k > 0 ? 0 : product;
        g *= k > 0 ? positive : negative;
        grad_x[i] = WRITE(k == 0 ? 0 : g);
    }
    sums[0] = above;
    sums[1] = below;
}

static void NAME(backward_row)(const STORED *restrict grad, const STORED *restrict kept, STORED *restrict grad_x, ptrdiff_t n,
                               const NUMBER *restrict positive, const NUMBER *restrict negative, int output, NUMBER cap,
                               NUMBER *restrict above, NUMBER *restrict below)
{
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; i++) {
        NUMBER k = READ(kept[i]), g = READ(grad[i]), pos = positive[i], neg = negative[i], gain = output ? 1 : pos;
        g = k * gain >= cap ? 0 : g;
        NUMBER product = g * k, to_above = g * pos, to_below = g * neg;
        above[i] += k > 0 ? product : 0;
        below[i] += k > 0 ? 0 : product;
        g = k > 0 ? to_above : to_below;
        grad_x[i] = WRITE(k == 0 ? 0 : g);
    }
}

/* grad_x, and for each channel the sums of grad * kept over kept > 0 and over the rest; nothing flows where cap was reached.
 *
 * kept is the input, or the output that has taken its place if output is not 0. sums is (channels, 2); partial has room for
 * two_slope_partial() numbers.
 */
void NAME(two_slope_backward)(const STORED *grad, const STORED *kept, STORED *grad_x, ptrdiff_t outer, ptrdiff_t channels,
                              ptrdiff_t inner, const NUMBER *positive, const NUMBER *negative, double cap, int output,
                              NUMBER *partial, double *sums, int threads)
{
    (void)threads;
    memset(sums, 0, (size_t)channels * 2 * sizeof *sums);
    if (side_by_side(channels, inner)) {
        ptrdiff_t strips = pieces(outer, ROWS);
#pragma omp parallel for schedule(static) num_threads(threads)
        for (ptrdiff_t strip = 0; strip < strips; strip++) {
            NUMBER *above = partial + 2 * channels * strip, *below = above + channels;
            memset(above, 0, (size_t)channels * 2 * sizeof *above);
            for (ptrdiff_t row = strip * ROWS; row < smaller((strip + 1) * ROWS, outer); row++)
                NAME(backward_row)(grad + row * channels, kept + row * channels, grad_x + row * channels, channels, positive,
                                   negative, output, (NUMBER)cap, above, below);
        }
        for (ptrdiff_t strip = 0; strip < strips; strip++)
            for (ptrdiff_t channel = 0; channel < channels; channel++) {
                sums[2 * channel] += partial[2 * channels * strip + channel];
                sums[2 * channel + 1] += partial[2 * channels * strip + channels + channel];
            }
        return;
    }
    ptrdiff_t each = pieces(inner, PIECE);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t piece = 0; piece < outer * channels * each; piece++) {
        ptrdiff_t row = piece / each, within = piece % each * PIECE, first = row * inner + within;
        NUMBER pos = positive[row % channels];
        NAME(backward_piece)(grad + first, kept + first, grad_x + first, (int)smaller(PIECE, inner - within), pos,
                             negative[row % channels], output ? 1 : pos, (NUMBER)cap, partial + 2 * piece);
    }
    for (ptrdiff_t piece = 0; piece < outer * channels * each; piece++) {
        ptrdiff_t channel = piece / each % channels;
        sums[2 * channel] += partial[2 * piece];
        sums[2 * channel + 1] += partial[2 * piece + 1];
    }
}

#undef STORED
#undef NUMBER
#undef NAME
#undef READ
#undef WRITE
