// The tensor-core path for float16.
#include "cuda_fast.h"

template void dk::fast_forward<torch::headeronly::Half>(const dk::Operator&, dk::Tensor&);
template void dk::fast_backward<torch::headeronly::Half>(const dk::Operator&, const dk::Tensor&, dk::Gradients&,
                                                         const dk::Mask&, bool);
