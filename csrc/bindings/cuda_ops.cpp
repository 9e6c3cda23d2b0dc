// The ops of the CUDA module, for the device and for the processor.
#include "cuda_activation.h"
#include "cuda_attention.h"
#include "cuda_dropout_add_layer_norm.h"
#include "cuda_embedding_layer_norm.h"
#include "cuda_gather_units.h"
#include "cuda_layer_norm.h"
#include "cuda_optimizer_step.h"
#include "cuda_padding.h"
#include "cuda_ticket_distance.h"
#include "cuda_ticket_masks.h"

namespace earlybert {

void define_ops(pybind11::module_& m) {
  define_activation(m);
  define_attention(m);
  define_dropout_add_layer_norm(m);
  define_embedding_layer_norm(m);
  define_gather_units(m);
  define_layer_norm(m);
  define_optimizer_step(m);
  define_padding(m);
  define_ticket_distance(m);
  define_ticket_masks(m);
}

}  // namespace earlybert
