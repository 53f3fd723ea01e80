// The floor: log-likelihood of x' = F x + N(0, Q), y = H x + N(0, R) and its derivatives with respect
// to F, H, Q and R, for DX states and DY sensors known when this is compiled. Covariance form, no checks.
//
// A row updates (m, P), then predicts. With e = y - H m, C = P H', S = H C + R, v = S^-1 e, K = C S^-1:
//   log-likelihood: -(log det(2 pi S) + e'v) / 2;  m <- F (m + C v);  P <- F (P - K C') F' + Q.
//
// Backwards, with a = F' dm and A = F' dP F the adjoints of the updated mean and covariance (dm, dP
// those of the next prediction), and B = K' A:
//   r  = K'a - v                                      adjoint of e
//   Z  = (v v' - S^-1 - (K'a) v' - v (K'a)') / 2 + B K  adjoint of R, and of S where P enters it
//   J  = v a' / 2 - B
//   dF += dm (m + C v)' + 2 dP F (P - K C'),   dQ += dP,   dR += Z,
//   dH += 2 (J P + Z C') - r m',
//   dm <- a - H'r,   dP <- A + H'J + J'H + H'Z H.
#include <math.h>
#include <string.h>

#define EACH(i, n) for (int i = 0; i < (n); i++)
#define LOG_TWO_PI 1.8378770664093453

typedef struct { const double (*F)[DX], (*H)[DX], (*Q)[DX], (*R)[DY]; } Model;

// What both passes need of a row: C, the Cholesky factor L of S with its inverted diagonal, and e.
typedef struct { double C[DX][DY], L[DY][DY], inverse[DY], e[DY], half_log_det; } Seen;

static inline void look(const Model *w, const double *restrict m, const double (*restrict P)[DX],
                        const double *restrict y, Seen *restrict s) {
    EACH(i, DX) EACH(j, DY) {
        double sum = 0;
        EACH(k, DX) sum += P[i][k] * w->H[j][k];
        s->C[i][j] = sum;
    }
    EACH(i, DY) {
        double sum = y[i];
        EACH(k, DX) sum -= w->H[i][k] * m[k];
        s->e[i] = sum;
        for (int j = 0; j <= i; j++) {
            double entry = w->R[i][j];
            EACH(k, DX) entry += w->H[i][k] * s->C[k][j];
            s->L[i][j] = entry;
        }
    }
    double det = 1;
    EACH(j, DY) {
        EACH(k, j) s->L[j][j] -= s->L[j][k] * s->L[j][k];
        s->L[j][j] = sqrt(s->L[j][j]);
        s->inverse[j] = 1 / s->L[j][j];
        det *= s->L[j][j];
        for (int i = j + 1; i < DY; i++) {
            EACH(k, j) s->L[i][j] -= s->L[i][k] * s->L[j][k];
            s->L[i][j] *= s->inverse[j];
        }
    }
    s->half_log_det = log(det);
}

// x <- L^-1 x
static inline void forward(const Seen *s, double *restrict x) {
    EACH(i, DY) {
        EACH(k, i) x[i] -= s->L[i][k] * x[k];
        x[i] *= s->inverse[i];
    }
}

// x <- L'^-1 x
static inline void backward(const Seen *s, double *restrict x) {
    for (int i = DY - 1; i >= 0; i--) {
        for (int k = i + 1; k < DY; k++) x[i] -= s->L[k][i] * x[k];
        x[i] *= s->inverse[i];
    }
}

static inline double row(const Model *w, double *restrict m, double (*restrict P)[DX],
                         const double *restrict y) {
    Seen s;
    look(w, m, P, y, &s);
    double white[DY], distance = 0, after[DX], FP[DX][DX];
    memcpy(white, s.e, sizeof white);
    forward(&s, white);
    EACH(i, DY) distance += white[i] * white[i];
    EACH(i, DX) forward(&s, s.C[i]);  // now half of the gain, C L'^-1
    EACH(i, DX) {
        after[i] = m[i];
        EACH(k, DY) after[i] += s.C[i][k] * white[k];
    }
    EACH(i, DX) EACH(j, DX) EACH(k, DY) P[i][j] -= s.C[i][k] * s.C[j][k];
    EACH(i, DX) {
        m[i] = 0;
        EACH(k, DX) m[i] += w->F[i][k] * after[k];
        EACH(j, DX) {
            double sum = 0;
            EACH(k, DX) sum += w->F[i][k] * P[k][j];
            FP[i][j] = sum;
        }
    }
    EACH(i, DX) for (int j = 0; j <= i; j++) {
        double sum = w->Q[i][j];
        EACH(k, DX) sum += FP[i][k] * w->F[j][k];
        P[i][j] = P[j][i] = sum;
    }
    return -0.5 * (distance + DY * LOG_TWO_PI) - s.half_log_det;
}

#define MODEL {(const void *)F, (const void *)H, (const void *)Q, (const void *)R}

double log_likelihood(const double *F, const double *H, const double *Q, const double *R,
                      const double *m0, const double *P0, const double *ys, long rows) {
    const Model w = MODEL;
    double m[DX], P[DX][DX], total = 0;
    memcpy(m, m0, sizeof m);
    memcpy(P, P0, sizeof P);
    for (long t = 0; t < rows; t++) total += row(&w, m, P, ys + t * DY);
    return total;
}

// `ms` and `Ps` have room for every row's prediction; dF, dH, dQ and dR are results.
double gradient(const double *F, const double *H, const double *Q, const double *R, const double *m0,
                const double *P0, const double *ys, long rows, double (*ms)[DX],
                double (*Ps)[DX][DX], double (*dF)[DX], double (*dH)[DX], double (*dQ)[DX],
                double (*dR)[DY]) {
    const Model w = MODEL;
    double m[DX], P[DX][DX], total = 0, dm[DX] = {0}, dP[DX][DX] = {{0}};
    memcpy(m, m0, sizeof m);
    memcpy(P, P0, sizeof P);
    for (long t = 0; t < rows; t++) {
        memcpy(ms[t], m, sizeof m);
        memcpy(Ps[t], P, sizeof P);
        total += row(&w, m, P, ys + t * DY);
    }
    memset(dF, 0, sizeof(double) * DX * DX);
    memset(dQ, 0, sizeof(double) * DX * DX);
    memset(dH, 0, sizeof(double) * DY * DX);
    memset(dR, 0, sizeof(double) * DY * DY);
    for (long t = rows - 1; t >= 0; t--) {
        const double *m = ms[t];
        const double(*P)[DX] = (const void *)Ps[t];
        Seen s;
        look(&w, m, P, ys + t * DY, &s);
        double v[DY], K[DX][DY], inverse[DY][DY] = {{0}}, after[DX], Pf[DX][DX];
        memcpy(v, s.e, sizeof v);
        memcpy(K, s.C, sizeof K);
        forward(&s, v), backward(&s, v);
        EACH(i, DX) forward(&s, K[i]), backward(&s, K[i]);
        EACH(i, DY) inverse[i][i] = 1, forward(&s, inverse[i]), backward(&s, inverse[i]);
        EACH(i, DX) {
            after[i] = m[i];
            EACH(k, DY) after[i] += s.C[i][k] * v[k];
            EACH(j, DX) {
                double sum = P[i][j];
                EACH(k, DY) sum -= K[i][k] * s.C[j][k];
                Pf[i][j] = sum;
            }
        }

        double PF[DX][DX], a[DX], A[DX][DX];
        EACH(i, DX) EACH(j, DX) {
            double sum = 0;
            EACH(k, DX) sum += dP[i][k] * w.F[k][j];
            PF[i][j] = sum;
        }
        EACH(i, DX) EACH(j, DX) {
            double sum = 0;
            EACH(k, DX) sum += PF[i][k] * Pf[k][j];
            dF[i][j] += dm[i] * after[j] + 2 * sum;
            dQ[i][j] += dP[i][j];
        }
        EACH(i, DX) {
            a[i] = 0;
            EACH(k, DX) a[i] += w.F[k][i] * dm[k];
            for (int j = 0; j <= i; j++) {
                double sum = 0;
                EACH(k, DX) sum += w.F[k][i] * PF[k][j];
                A[i][j] = A[j][i] = sum;
            }
        }

        double Ka[DY], r[DY], B[DY][DX], Z[DY][DY], J[DY][DX], G[DY][DX];
        EACH(i, DY) {
            Ka[i] = 0;
            EACH(k, DX) Ka[i] += K[k][i] * a[k];
            r[i] = Ka[i] - v[i];
            EACH(j, DX) {
                double sum = 0;
                EACH(k, DX) sum += K[k][i] * A[k][j];
                B[i][j] = sum;
                J[i][j] = 0.5 * v[i] * a[j] - sum;
            }
        }
        EACH(i, DY) EACH(j, DY) {
            double sum = 0.5 * (v[i] * v[j] - inverse[i][j] - Ka[i] * v[j] - v[i] * Ka[j]);
            EACH(k, DX) sum += B[i][k] * K[k][j];
            Z[i][j] = sum;
            dR[i][j] += sum;
        }
        EACH(i, DY) EACH(j, DX) {
            double sum = 0, half = J[i][j];
            EACH(k, DX) sum += J[i][k] * P[k][j];
            EACH(k, DY) sum += Z[i][k] * s.C[j][k];
            dH[i][j] += 2 * sum - r[i] * m[j];
            EACH(k, DY) half += 0.5 * Z[i][k] * w.H[k][j];
            G[i][j] = half;  // J + Z H / 2: dP gains H'G + G'H
        }
        EACH(i, DX) {
            dm[i] = a[i];
            EACH(k, DY) dm[i] -= w.H[k][i] * r[k];
            for (int j = 0; j <= i; j++) {
                double sum = A[i][j];
                EACH(k, DY) sum += w.H[k][i] * G[k][j] + G[k][i] * w.H[k][j];
                dP[i][j] = dP[j][i] = sum;
            }
        }
    }
    return total;
}
