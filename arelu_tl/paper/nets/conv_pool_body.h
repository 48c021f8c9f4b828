/* One block of conv_pool.c, which defines CI, CO, K, H and NAME before it includes this. */
#define O (H - K + 1)
#define P (O / 2)
#define ROW (H * CI)
#define TAPS (K * CI)
/* Forward a vector holds output channels: as few beyond their number as may be. */
#if CO > BYTES / 4
#define OUTS half
#define OUT_FLAGS half_flags
#else
#define OUTS lanes
#define OUT_FLAGS flags
#endif
#define OUT_LANES ((int)(sizeof(OUTS) / sizeof(float)))
#define NV ((CO + OUT_LANES - 1) / OUT_LANES)
/* Backward one holds a row of the kernel. */
#if K * CI <= 8
#define INS half
#define INS_LOOSE half_loose
#else
#define INS lanes
#define INS_LOOSE loose
#endif
#define IN_LANES ((int)(sizeof(INS) / sizeof(float)))
#define TV ((TAPS + IN_LANES - 1) / IN_LANES)
/* Pooled numbers at a time, neighbours in a row: sums enough under way to hide how long one addition takes. */
#define AT_ONCE (NV == 1 ? 2 : 1)
#define IN (H * H * CI)
#define OUT (P * P * CO)

void NAME(conv_pool_forward)(
    const float *x, const float *weight, const float *bias, float *y, uint8_t *taken, ptrdiff_t nets, ptrdiff_t share, ptrdiff_t batch)
{
    for (ptrdiff_t n = 0; n < nets; n++) {
        OUTS w[K * TAPS][NV];
        memset(w, 0, sizeof w);
        for (int t = 0; t < K * TAPS; t++)
            memcpy(&w[t][0], weight + (n * K * TAPS + t) * CO, CO * sizeof(float));
        float b[NV * OUT_LANES] = {0};
        memcpy(b, bias + n * CO, CO * sizeof(float));
        for (ptrdiff_t i = 0; i < batch; i++) {
            const float *image = x + ((n / share) * batch + i) * IN;
            float *out = y + (n * batch + i) * OUT;
            uint8_t *where = taken + (n * batch + i) * OUT;
            for (int at = 0; at < P * P; at += AT_ONCE) {
                const float *corner = image + at / P * 2 * ROW + at % P * 2 * CI;
                OUTS sum[AT_ONCE * 4][NV] = {{{0}}};
                for (int ky = 0; ky < K; ky++)
                    for (int t = 0; t < TAPS; t++) {
                        const float *from = corner + ky * ROW + t;
                        EACH(v, NV) EACH(p, AT_ONCE * 4)
                            sum[p][v] += from[(p / 4 * 2 + p % 2) * CI + p % 4 / 2 * ROW] * w[ky * TAPS + t][v];
                    }
                EACH(p, AT_ONCE) {
                    float most[NV * OUT_LANES];
                    int32_t which[NV * OUT_LANES];
                    EACH(v, NV) {
                        OUTS best = sum[4 * p][v];
                        OUT_FLAGS index = {0};
                        EACH(q, 4) {
                            OUTS other = sum[4 * p + q][v];
                            OUT_FLAGS more = (other > best) | (other != other);
                            best = (OUTS)(((OUT_FLAGS)other & more) | ((OUT_FLAGS)best & ~more));
                            index = (more & q) | (index & ~more);
                        }
                        memcpy(most + v * OUT_LANES, &best, sizeof best);
                        memcpy(which + v * OUT_LANES, &index, sizeof index);
                    }
                    for (int o = 0; o < CO; o++) {
                        out[(at + p) * CO + o] = most[o] + b[o];
                        where[(at + p) * CO + o] = (uint8_t)which[o];
                    }
                }
            }
        }
    }
}

void NAME(conv_pool_backward)(
    const float *grad, const uint8_t *taken, const float *x, const float *weight, float *grad_x, float *grad_weight,
    float *grad_bias, ptrdiff_t nets, ptrdiff_t share, ptrdiff_t batch)
{
    /* Whole vectors are taken of each row: what is read beyond it is not used, and what is added beyond it is zero. */
    float in[IN + TV * IN_LANES], back[IN + TV * IN_LANES];
    memset(in, 0, sizeof in);
    for (ptrdiff_t n = 0; n < nets; n++) {
        INS w[CO][K][TV], sum[CO][K][TV];
        float bias[CO] = {0};
        memset(w, 0, sizeof w);
        memset(sum, 0, sizeof sum);
        for (int o = 0; o < CO; o++)
            for (int ky = 0; ky < K; ky++)
                for (int t = 0; t < TAPS; t++)
                    ((float *)w[o][ky])[t] = weight[((n * K + ky) * TAPS + t) * CO + o];
        for (ptrdiff_t i = 0; i < batch; i++) {
            const float *g = grad + (n * batch + i) * OUT;
            const uint8_t *where = taken + (n * batch + i) * OUT;
            memcpy(in, x + ((n / share) * batch + i) * IN, IN * sizeof(float));
            if (grad_x)
                memset(back, 0, sizeof back);
            for (int o = 0; o < CO; o++) {
                INS own[K][TV];
                EACH(ky, K) EACH(v, TV) own[ky][v] = sum[o][ky][v];
                for (int at = 0; at < P * P; at++) {
                    float of = g[at * CO + o];
                    int q = where[at * CO + o];
                    const float *from = in + (at / P * 2 + q / 2) * ROW + (at % P * 2 + q % 2) * CI;
                    bias[o] += of;
                    EACH(ky, K) EACH(v, TV) own[ky][v] += of * *(const INS_LOOSE *)(from + ky * ROW + v * IN_LANES);
                }
                EACH(ky, K) EACH(v, TV) sum[o][ky][v] = own[ky][v];
                if (!grad_x)
                    continue;
                EACH(ky, K) EACH(v, TV) own[ky][v] = w[o][ky][v];
                for (int at = 0; at < P * P; at++) {
                    float of = g[at * CO + o];
                    int q = where[at * CO + o];
                    float *to = back + (at / P * 2 + q / 2) * ROW + (at % P * 2 + q % 2) * CI;
                    EACH(ky, K) EACH(v, TV) *(INS_LOOSE *)(to + ky * ROW + v * IN_LANES) += of * own[ky][v];
                }
            }
            if (grad_x)
                memcpy(grad_x + (n * batch + i) * IN, back, IN * sizeof(float));
        }
        for (int o = 0; o < CO; o++) {
            grad_bias[n * CO + o] = bias[o];
            for (int ky = 0; ky < K; ky++)
                for (int t = 0; t < TAPS; t++)
                    grad_weight[((n * K + ky) * TAPS + t) * CO + o] = ((float *)sum[o][ky])[t];
        }
    }
}
#undef O
#undef P
#undef ROW
#undef TAPS
#undef OUTS
#undef OUT_FLAGS
#undef OUT_LANES
#undef NV
#undef INS
#undef INS_LOOSE
#undef IN_LANES
#undef TV
#undef AT_ONCE
#undef IN
#undef OUT
#undef CI
#undef CO
#undef K
#undef H
#undef NAME
