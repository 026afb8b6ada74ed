#include "bias_act.h"
#include "launch_cuda.cuh"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CUDA, m) {
  m.impl("bias_act", TORCH_BOX(&hires_gan::bias_act<hires_gan::Cuda>));
  m.impl("bias_act_derivative", TORCH_BOX(&hires_gan::bias_act_derivative<hires_gan::Cuda>));
}
