#include "epilogue.h"
#include "launch_cpu.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hires_gan, CPU, m) {
  m.impl("epilogue", TORCH_BOX(&hires_gan::epilogue<hires_gan::Cpu>));
  m.impl("epilogue_gradient", TORCH_BOX(&hires_gan::epilogue_gradient<hires_gan::Cpu>));
  m.impl("epilogue_second", TORCH_BOX(&hires_gan::epilogue_second<hires_gan::Cpu>));
}
