// earlybert_kernels._cuda: the CUDA ops on plain device addresses and a stream. Shapes, dtypes and lifetimes are the
// caller's business (earlybert_kernels/backends/cuda/); the arguments are described in csrc/cuda/*.h. The same bindings
// make earlybert_kernels._cuda_emulated, whose addresses are the processor's.
#include "cuda.h"

namespace py = pybind11;
using namespace earlybert;

#if defined(EARLYBERT_EMULATED)
PYBIND11_MODULE(_cuda_emulated, m) {
#else
PYBIND11_MODULE(_cuda, m) {
#endif
  m.doc() = "CUDA kernels of earlybert_kernels. Addresses and streams are integers; 0 is none.";
  py::dict codes;
  codes["float32"] = static_cast<int>(Dtype::float32);
  codes["float16"] = static_cast<int>(Dtype::float16);
  codes["bfloat16"] = static_cast<int>(Dtype::bfloat16);
  m.attr("DTYPES") = codes;
  define_ops(m);
}
