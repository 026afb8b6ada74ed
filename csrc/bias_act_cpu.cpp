#include "bias_act.h"
#include "launch_cpu.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&hires_gan::bias_act<hires_gan::Cpu>));
  m.impl("bias_act_derivative", TORCH_BOX(&hires_gan::bias_act_derivative<hires_gan::Cpu>));
}
