// What the files of the CUDA module's bindings share: one header an op, each with one function that adds it;
// cuda_ops.cpp has them all, because pybind11's templates take the compiler five seconds a file.
#pragma once

#include "../cuda/launch.h"
#include "addresses.h"

namespace earlybert {

inline Launch on(int device, Address stream) { return {device, at<void>(stream)}; }

// Adds all ops; compiled once for both modules.
void define_ops(pybind11::module_& m);

}  // namespace earlybert
