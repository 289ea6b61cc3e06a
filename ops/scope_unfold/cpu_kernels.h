// The unfolding kernels, vectorised over channels, for one instruction set (see cpu_vectors.h).
//
// Cost a tap and vector of channels, without data offsets: forward 5 loads, 4 multiply-adds and 4 stores, backward 6
// loads, 8 multiply-adds and a store.
#include "../common/cpu_vectors.h"
#include "cpu_unfold.h"

namespace dk {
namespace DK_ISA {
namespace {

#include "cpu_decode.h"
#include "cpu_kernels_forward.h"
#include "cpu_kernels_backward.h"

template <class A>
constexpr UnfoldKernels<A> kUnfold = {{unfold_forward<A, false>, unfold_forward<A, true>},
                                      {unfold_backward<A, false>, unfold_backward<A, true>}};

}  // namespace

const UnfoldKernels<float> kFloatUnfold = kUnfold<float>;
const UnfoldKernels<double> kDoubleUnfold = kUnfold<double>;

}  // namespace DK_ISA
}  // namespace dk
