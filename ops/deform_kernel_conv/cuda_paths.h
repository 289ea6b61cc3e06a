// The two ways to compute deform_kernel_conv on CUDA. `fast` is instantiated once for every stored type.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "op.h"

namespace dk {

void plain_forward(const Operator& op, Tensor& output);
void plain_backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted);

template <class T>
void fast_forward(const Operator& op, Tensor& output);
template <class T>
void fast_backward(const Operator& op, const Tensor& grad, Gradients& gradients, const Mask& wanted,
                   bool deterministic);

// Calls f with a zero of the stored type, one of those that the fast path has.
template <class F>
void with_stored_type(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(torch::headeronly::Half());
    default: return f(torch::headeronly::BFloat16());
  }
}

}  // namespace dk
