// What both modules' bindings are given: tensors as addresses, called without Python's lock.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace earlybert {

using Address = std::uintptr_t;
using release = pybind11::call_guard<pybind11::gil_scoped_release>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace earlybert
