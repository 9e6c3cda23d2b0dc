#pragma once

#include "../cuda/padding.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "cuda.h"

namespace earlybert {
namespace padding_binding {

using RowsTuple = std::tuple<Address, Address, int64_t, int64_t, int64_t>;  // the fields of PaddingRows

template <void (*kRun)(const PaddingPlaces&, const PaddingRows*, int64_t, Launch)>
void run(int device, Address stream, int64_t batch, int64_t seq, int64_t tokens, Address index,
         const std::vector<RowsTuple>& tensors) {
  std::vector<PaddingRows> given;
  given.reserve(tensors.size());
  for (const auto& [from, to, row_bytes, batch_stride, seq_stride] : tensors) {
    given.push_back({at<void>(from), at<void>(to), row_bytes, batch_stride, seq_stride});
  }
  kRun({batch, seq, tokens, at<int64_t>(index)}, given.data(), static_cast<int64_t>(given.size()), on(device, stream));
}

}  // namespace padding_binding

inline void define_padding(pybind11::module_& m) {
  using namespace padding_binding;
  m.def("unpad", &run<unpad>, release());
  m.def("pad", &run<pad>, release());
}

}  // namespace earlybert
