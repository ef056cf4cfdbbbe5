"""Compiled products of small matrices, whose rows are side by side in the cache.

Twelve sums at a time keep a core's fused multiplications busy.
"""

import numpy as np

from ...host_code import compiled


@compiled
def products(left, num_left, right, num_right, width, out):
    """out[m, n] = left[m] . right[n], for the first `width` numbers of rows.

    Args:
        num_right: rows of `right`, a multiple of 4; filled up with zeros.
    """
    for n in range(0, num_right, 4):
        r0, r1, r2, r3 = right[n], right[n + 1], right[n + 2], right[n + 3]
        m = 0
        while m + 3 <= num_left:
            l0, l1, l2 = left[m], left[m + 1], left[m + 2]
            a0 = a1 = a2 = a3 = b0 = b1 = np.float32(0)
            b2 = b3 = c0 = c1 = c2 = c3 = np.float32(0)
            for k in range(width):
                a, b, c = l0[k], l1[k], l2[k]
                x0, x1, x2, x3 = r0[k], r1[k], r2[k], r3[k]
                a0 += a * x0
                a1 += a * x1
                a2 += a * x2
                a3 += a * x3
                b0 += b * x0
                b1 += b * x1
                b2 += b * x2
                b3 += b * x3
                c0 += c * x0
                c1 += c * x1
                c2 += c * x2
                c3 += c * x3
            out[m, n], out[m, n + 1], out[m, n + 2], out[m, n + 3] = a0, a1, a2, a3
            m += 1
            out[m, n], out[m, n + 1], out[m, n + 2], out[m, n + 3] = b0, b1, b2, b3
            m += 1
            out[m, n], out[m, n + 1], out[m, n + 2], out[m, n + 3] = c0, c1, c2, c3
            m += 1
        while m < num_left:
            l0 = left[m]
            a0 = a1 = a2 = a3 = np.float32(0)
            for k in range(width):
                a0 += l0[k] * r0[k]
                a1 += l0[k] * r1[k]
                a2 += l0[k] * r2[k]
                a3 += l0[k] * r3[k]
            out[m, n], out[m, n + 1], out[m, n + 2], out[m, n + 3] = a0, a1, a2, a3
            m += 1


@compiled
def mix(weights, values, num_values, first, sums):
    """sums[m] += sum over n of weights[m, n] * values[n], of the numbers from `first` on.

    Args:
        num_values: a multiple of 4.
    """
    rows, width = sums.shape
    for n in range(0, num_values, 4):
        x0, x1 = values[n][first : first + width], values[n + 1][first : first + width]
        x2, x3 = values[n + 2][first : first + width], values[n + 3][first : first + width]
        m = 0
        while m + 3 <= rows:
            a, b, c = sums[m], sums[m + 1], sums[m + 2]
            a0, a1, a2, a3 = weights[m, n], weights[m, n + 1], weights[m, n + 2], weights[m, n + 3]
            b0, b1, b2, b3 = (
                weights[m + 1, n],
                weights[m + 1, n + 1],
                weights[m + 1, n + 2],
                weights[m + 1, n + 3],
            )
            c0, c1, c2, c3 = (
                weights[m + 2, n],
                weights[m + 2, n + 1],
                weights[m + 2, n + 2],
                weights[m + 2, n + 3],
            )
            for k in range(width):
                a[k] += a0 * x0[k] + a1 * x1[k] + a2 * x2[k] + a3 * x3[k]
                b[k] += b0 * x0[k] + b1 * x1[k] + b2 * x2[k] + b3 * x3[k]
                c[k] += c0 * x0[k] + c1 * x1[k] + c2 * x2[k] + c3 * x3[k]
            m += 3
        while m < rows:
            a = sums[m]
            a0, a1, a2, a3 = weights[m, n], weights[m, n + 1], weights[m, n + 2], weights[m, n + 3]
            for k in range(width):
                a[k] += a0 * x0[k] + a1 * x1[k] + a2 * x2[k] + a3 * x3[k]
            m += 1
