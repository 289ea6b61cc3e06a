// One image after the other where a tensor does not lie as the kernels take it: copied row by row, as rows are needed.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu_staging.h"

namespace dk {

template <class A>
class StagedImage {
 public:
  // Of at most so many channels at a time.
  StagedImage(const View& v, int64_t most)
      : step(round_up(most, 64 / int64_t(sizeof(A)))), view(v), plane(v.height * v.width * step), is_there(v.height) {}

  const int64_t step;  // between pixels

  // Pixel (0, 0) of channels of an image, of which rows [first, end) can be read.
  const A* show(int64_t of_image, int64_t from_channel, int64_t channels, int64_t first, int64_t end) {
    if (of_image != image || from_channel != channel) std::fill(is_there.begin(), is_there.end(), false);
    image = of_image, channel = from_channel;
    for (int64_t y = std::max<int64_t>(first, 0); y < std::min(end, view.height); ++y) {
      if (is_there[y]) continue;
      load(view, Box{image, channel, channels, y, 1, 1, 0, step}, plane.get() + y * view.width * step);
      is_there[y] = true;
    }
    return plane.get();
  }

 private:
  const View& view;
  Buffer<A> plane;
  std::vector<bool> is_there;
  int64_t image = -1, channel = 0;
};

}  // namespace dk
