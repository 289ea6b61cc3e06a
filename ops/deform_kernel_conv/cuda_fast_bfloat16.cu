// The tensor-core path for bfloat16.
#include "cuda_fast.h"

template void dk::fast_forward<torch::headeronly::BFloat16>(const dk::Operator&, dk::Tensor&);
template void dk::fast_backward<torch::headeronly::BFloat16>(const dk::Operator&, const dk::Tensor&, dk::Gradients&,
                                                             const dk::Mask&, bool);
