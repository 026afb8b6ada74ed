#include "random.h"
#include "launch_cpu.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CPU, m) {
  m.impl("philox_words", TORCH_BOX(&hires_gan::philox_words<hires_gan::Cpu>));
  m.impl("philox_uniform", TORCH_BOX(&hires_gan::philox_uniform<hires_gan::Cpu>));
  m.impl("philox_normal", TORCH_BOX(&hires_gan::philox_normal<hires_gan::Cpu>));
}
