#include "random.h"
#include "launch_cuda.cuh"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CUDA, m) {
  m.impl("philox_words", TORCH_BOX(&hires_gan::philox_words<hires_gan::Cuda>));
  m.impl("philox_uniform", TORCH_BOX(&hires_gan::philox_uniform<hires_gan::Cuda>));
  m.impl("philox_normal", TORCH_BOX(&hires_gan::philox_normal<hires_gan::Cuda>));
}
