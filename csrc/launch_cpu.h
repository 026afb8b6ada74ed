// Runs the kernels on the CPU: block by block, phase by phase, thread by thread. For correctness, not for speed.

#pragma once

#include "device.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace hires_gan {

struct Cpu {
  explicit Cpu(const torch::stable::Tensor&) {}

  template <typename Kernel>
  void launch(const Kernel& kernel, int64_t blocks) const {
    torch::stable::parallel_for(0, blocks, 16, [&](int64_t begin, int64_t end) {
      typename Kernel::Shared shared;
      for (int64_t block = begin; block < end; ++block) run<0>(kernel, block, shared);
    });
  }

 private:
  template <int kPhase, typename Kernel>
  static void run(const Kernel& kernel, int64_t block, typename Kernel::Shared& shared) {
    if constexpr (kPhase < Kernel::kPhases) {
      for (int thread = 0; thread < kThreads; ++thread) kernel.template phase<kPhase>(block, thread, shared);
      run<kPhase + 1>(kernel, block, shared);
    }
  }
};

}  // namespace hires_gan
