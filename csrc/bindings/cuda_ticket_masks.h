#pragma once

#include <pybind11/stl.h>

#include "../cuda/ticket_masks.h"
#include "cuda.h"

namespace earlybert {
namespace ticket_masks_binding {

// The address of a layer's scores, its units, and how many stay.
using LayerAt = std::tuple<Address, int64_t, int64_t>;

void masks(int device, Address stream, const std::vector<LayerAt>& all, int64_t keep_in_all, int64_t multiple_of,
           Address widths, Address mask) {
  std::vector<TicketLayer> layers;
  for (const auto& [scores, units, keep] : all) layers.push_back({at<float>(scores), units, keep});
  ticket_masks({layers.data(), static_cast<int64_t>(layers.size()), keep_in_all, multiple_of, at<int>(widths),
                at<uint8_t>(mask)},
               on(device, stream));
}

}  // namespace ticket_masks_binding

inline void define_ticket_masks(pybind11::module_& m) {
  using namespace ticket_masks_binding;
  m.attr("TICKET_MAX_LAYERS") = kTicketMaxLayers;
  m.def("ticket_masks", &masks, release());
}

}  // namespace earlybert
