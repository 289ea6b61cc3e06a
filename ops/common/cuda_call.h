// What the entries of CUDA operators need: registration, and the device's current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "arguments.h"

namespace dk {

inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

// Starts the kernels of an operator on the input's device and its current stream; what the entries of op.h compute by.
template <class Kernels>
struct Cuda {
  template <class Operator>
  static void forward(Operator op, Tensor& output) {
    const torch::stable::accelerator::DeviceGuard guard(op.input.get_device_index());
    op.stream = current_stream(op.input);
    Kernels::forward(op, output);
  }

  template <class Operator, class Results, class... More>
  static void backward(Operator op, const Tensor& grad, Results& results, const More&... more) {
    const torch::stable::accelerator::DeviceGuard guard(op.input.get_device_index());
    op.stream = current_stream(op.input);
    Kernels::backward(op, grad, results, more...);
  }
};

}  // namespace dk
