// The two ways to compute deform_kernel_conv on CUDA. `fast` is instantiated once for every stored type.
#pragma once

#include "../arguments.h"

namespace dk {

// A call with checked arguments, on the stream it runs on.
struct Operator {
  Geometry g;
  Tensor input;
  OptionalTensor data_offset, kernel_offset;
  Tensor weight;
  void* stream;
};

void plain_forward(const Operator& op, Tensor& output);
void plain_backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted);

template <class T>
void fast_forward(const Operator& op, Tensor& output);
template <class T>
void fast_backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted, bool deterministic);

}  // namespace dk
