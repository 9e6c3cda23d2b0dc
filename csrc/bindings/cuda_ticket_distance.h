#pragma once

#include "../cuda/ticket_distance.h"

#include "cuda.h"

namespace earlybert {
namespace ticket_distance_binding {

void distance(int device, Address stream, int64_t units, Address a, Address b, Address result) {
  ticket_distance({units, at<uint8_t>(a), at<uint8_t>(b), at<double>(result)}, on(device, stream));
}

}  // namespace ticket_distance_binding

inline void define_ticket_distance(pybind11::module_& m) {
  using namespace ticket_distance_binding;
  m.def("ticket_distance", &distance, release());
}

}  // namespace earlybert
