// What the files of the CUDA module's bindings share: one file an op, each with one function that adds it.
#pragma once

#include "../cuda/launch.h"
#include "addresses.h"

namespace earlybert {

inline Launch on(int device, Address stream) { return {device, at<void>(stream)}; }

void define_activation(pybind11::module_& m);
void define_attention(pybind11::module_& m);
void define_dropout_add_layer_norm(pybind11::module_& m);
void define_embedding_layer_norm(pybind11::module_& m);
void define_gather_units(pybind11::module_& m);
void define_layer_norm(pybind11::module_& m);
void define_optimizer_step(pybind11::module_& m);
void define_padding(pybind11::module_& m);
void define_ticket_distance(pybind11::module_& m);
void define_ticket_masks(pybind11::module_& m);

}  // namespace earlybert
