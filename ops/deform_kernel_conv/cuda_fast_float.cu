// The tensor-core path for float32.
#include "cuda_fast.h"

template void dk::fast_forward<float>(const dk::Operator&, dk::Tensor&);
template void dk::fast_backward<float>(const dk::Operator&, const dk::Tensor&, dk::Gradients&, const dk::Mask&, bool);
