#pragma once

#include "../cuda/gather_units.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "cuda.h"

namespace earlybert {
namespace gather_units_binding {

// The fields of GatherUnits, in their order.
using Fields = std::array<int64_t, 12>;

template <void (*kRun)(const GatherUnits*, int64_t, Launch)>
void run(int device, Address stream, const std::vector<Fields>& tensors) {
  std::vector<GatherUnits> given;
  given.reserve(tensors.size());
  for (const Fields& f : tensors) {
    const auto address = [&f](int field) { return static_cast<Address>(f[field]); };
    given.push_back({f[0], f[1], f[2], f[3], f[4], static_cast<Dtype>(f[5]), at<int64_t>(address(6)),
                     at<float>(address(7)), at<void>(address(8)), at<void>(address(9)), at<void>(address(10)),
                     at<float>(address(11))});
  }
  kRun(given.data(), static_cast<int64_t>(given.size()), on(device, stream));
}

}  // namespace gather_units_binding

inline void define_gather_units(pybind11::module_& m) {
  using namespace gather_units_binding;
  m.attr("GATHER_UNITS_MOST") = kGatherUnitsMost;
  m.def("gather_units", &run<gather_units>, release());
  m.def("scatter_units", &run<scatter_units>, release());
}

}  // namespace earlybert
