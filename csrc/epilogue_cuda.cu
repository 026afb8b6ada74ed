#include "epilogue.h"
#include "launch_cuda.cuh"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CUDA, m) {
  m.impl("epilogue", TORCH_BOX(&hires_gan::epilogue<hires_gan::Cuda>));
  m.impl("epilogue_gradient", TORCH_BOX(&hires_gan::epilogue_gradient<hires_gan::Cuda>));
  m.impl("epilogue_second", TORCH_BOX(&hires_gan::epilogue_second<hires_gan::Cuda>));
}
