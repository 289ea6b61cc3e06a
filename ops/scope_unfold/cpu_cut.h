// How the work on a piece is cut: by the sizes alone, never by the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/cpu_staging.h"
#include "cpu_unfold.h"

namespace dk {
namespace {

// Positions [begin, end) of an image.
struct Stretch {
  int64_t image, begin, end;
};

// What of the piece lies in each image, cut where a position is a multiple of `step`.
std::vector<Stretch> stretches(const UnfoldOperator& op, int64_t step) {
  const int64_t area = op.g.out_height * op.g.out_width, end = op.first + op.count;
  std::vector<Stretch> all;
  for (int64_t at = op.first; at < end;) {
    const int64_t image = at / area, begin = at % area;
    const int64_t stop = std::min({begin - begin % step + step, area, begin + end - at});
    all.push_back({image, begin, stop});
    at += stop - begin;
  }
  return all;
}

// Backward adds to pixels, and no two tasks that run at a time may add to the same. Bands of rows are as high as taps
// reach, so that of every other band none reaches into another: first those of even numbers are worked on, then the
// others. Where taps move there is one band an image. Where that leaves few tasks, channels are cut too.
struct Cut {
  static constexpr int64_t kTasks = 16, kLeastPositions = 64, kLeastChannels = 64;

  std::vector<Stretch> bands[2];
  int64_t channels, pieces;  // of a task at most, and how many that makes

  explicit Cut(const UnfoldOperator& op) {
    const Geometry& g = op.g;
    const int64_t reach = (g.kernel_h - 1) * g.dilation_h / g.stride_h;
    const int64_t rows = std::max({reach, round_up(kLeastPositions, g.out_width) / g.out_width, int64_t(1)});
    const int64_t step = (op.data_offset ? g.out_height : std::min(rows, g.out_height)) * g.out_width;
    for (const Stretch& s : stretches(op, step)) bands[s.begin / step % 2].push_back(s);
    const int64_t tasks = std::max<int64_t>(1, std::min(bands[0].size(), bands[1].size()));
    const int64_t most = std::max<int64_t>(1, std::min(kTasks / tasks, g.channels / kLeastChannels));
    channels = std::max<int64_t>(1, round_up(round_up(g.channels, most) / most, 16));
    pieces = std::max<int64_t>(1, round_up(g.channels, channels) / channels);
  }
};

}  // namespace
}  // namespace dk
