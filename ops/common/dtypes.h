// From a tensor's dtype to C++'s types.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace dk {

// Calls f(T(), A()) for the stored and the computing type.
template <class F>
void with_types(torch::headeronly::ScalarType type, const F& f) {
  switch (type) {
    case torch::headeronly::ScalarType::Float: return f(float(), float());
    case torch::headeronly::ScalarType::Double: return f(double(), double());
    case torch::headeronly::ScalarType::Half: return f(torch::headeronly::Half(), float());
    default: return f(torch::headeronly::BFloat16(), float());
  }
}

}  // namespace dk
