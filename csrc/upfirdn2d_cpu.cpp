#include "upfirdn2d.h"
#include "launch_cpu.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CPU, m) {
  m.impl("upfirdn2d", TORCH_BOX(&hires_gan::upfirdn2d<hires_gan::Cpu>));
}
