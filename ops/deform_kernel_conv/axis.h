// One coordinate of a tap in the scope, shared by the CPU and the CUDA operator: the same knots on both.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace dk {

// Integers as wide as A, so that loops over both vectorise.
template <class A>
struct Index {
  typedef int32_t type;
};
template <>
struct Index<double> {
  typedef int64_t type;
};

// The sample below a coordinate, the fraction above that sample, and the slope of the clip (1 or 0).
template <class A>
struct Axis {
  typename Index<A>::type lower;
  A fraction, slope;
};

// Clipped: 0 <= lower and lower + 1 < size (but lower = 0 for size 1), the derivative is that to the right, at the
// upper edge that to the left. Not clipped: -1 <= lower < size, samples -1 and size are zero. `static`: every file
// that includes this compiles its own, for its own instruction set.
template <class A>
DK_HOST_DEVICE static inline Axis<A> scope_axis(A c, int64_t size, bool clip) {
  typedef typename Index<A>::type I;
  Axis<A> axis;
  if (clip) {
    const A top = A(size - 1);
    const I last = size > 1 ? I(size - 2) : I(0);
    axis.slope = (c >= 0) & (c <= top) & (size > 1) ? A(1) : A(0);
    c = c > 0 ? c : A(0);
    c = c < top ? c : top;
    axis.lower = I(c);
    axis.lower = axis.lower < last ? axis.lower : last;
  } else {
    const bool inside = (c >= -1) & (c < A(size));
    c = inside ? c : A(-1);
    axis.slope = inside ? A(1) : A(0);
    const I truncated = I(c);
    axis.lower = truncated - (c < A(truncated));
  }
  axis.fraction = c - A(axis.lower);
  return axis;
}

}  // namespace dk
