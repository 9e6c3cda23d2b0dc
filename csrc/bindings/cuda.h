// What the files of the CUDA module's bindings share: one file an op, each with one function that adds it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../cuda/launch.h"

namespace earlybert {

using Address = std::uintptr_t;
using release = pybind11::call_guard<pybind11::gil_scoped_release>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Launch on(int device, Address stream) { return {device, at<void>(stream)}; }

void define_activation(pybind11::module_& m);
void define_attention(pybind11::module_& m);
void define_dropout_add_layer_norm(pybind11::module_& m);
void define_embedding_layer_norm(pybind11::module_& m);
void define_gather_units(pybind11::module_& m);
void define_lamb_step(pybind11::module_& m);
void define_layer_norm(pybind11::module_& m);
void define_padding(pybind11::module_& m);
void define_ticket_distance(pybind11::module_& m);
void define_ticket_masks(pybind11::module_& m);

}  // namespace earlybert
