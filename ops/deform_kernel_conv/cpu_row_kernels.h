// The row kernels, vectorised over channels, for one instruction set (see cpu_vectors.h).
//
// Cost a tap and vector of channels: forward, 5 loads and 5 multiply-adds with kernel or data offsets, 8 and 9 with
// both, and one load and four shuffles (without AVX-512 or AVX2 four loads) for the coefficients of up to 16 vectors;
// where nothing moves 1.25 loads and 1. A processor that loads and multiplies 64 bytes a cycle so needs 5 and 9 cycles.
// Backward with kernel offsets 14 multiplications or multiply-adds, 5 loads and 3 stores, two of each for the offset's
// gradient; with data offsets 14, 11 and 6. Each coefficient is loaded once for two vectors.

#include "../common/cpu_vectors.h"
#include "cpu_row.h"

namespace dk {
namespace DK_ISA {

#include "cpu_row_decode.h"
#include "cpu_row_forward.h"
#include "cpu_row_rigid_forward.h"

#include "cpu_pack.h"
#include "cpu_row_list.h"
#include "cpu_row_backward.h"
#include "cpu_row_rigid_backward.h"

template <class A>
static constexpr RowKernels<A> kRows = {
    {{rigid_row<A>, forward_row<A, false, true>}, {forward_row<A, true, false>, forward_row<A, true, true>}},
    {{backward_row<A, false, false>, backward_row<A, false, true>},
     {backward_row<A, true, false>, backward_row<A, true, true>}},
    kChunk<A>,
    to_chunks<A>,
    from_chunks<A>};

const RowKernels<float> kFloatRows = kRows<float>;
const RowKernels<double> kDoubleRows = kRows<double>;

}  // namespace DK_ISA
}  // namespace dk
