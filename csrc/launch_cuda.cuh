// Runs the kernels on the GPU that holds the tensors, on torch's current stream, without waiting for it.

#pragma once

#include "device.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace hires_gan {

template <int kPhase, typename Kernel>
__device__ __forceinline__ void run_phases(const Kernel& kernel, int64_t block, typename Kernel::Shared& shared) {
  kernel.template phase<kPhase>(block, static_cast<int>(threadIdx.x), shared);
  if constexpr (kPhase + 1 < Kernel::kPhases) {
    __syncthreads();
    run_phases<kPhase + 1>(kernel, block, shared);
  }
}

template <typename Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kBlocksAtOnce) entry(const Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  run_phases<0>(kernel, static_cast<int64_t>(blockIdx.x), shared);
}

class Cuda {
 public:
  explicit Cuda(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename Kernel>
  void launch(const Kernel& kernel, int64_t blocks) const {
    STD_TORCH_CHECK(blocks <= INT32_MAX, "the tensor is too large: ", blocks, " blocks of threads, 2^31 - 1 allowed");
    entry<<<static_cast<unsigned>(blocks), kThreads, 0, stream_>>>(kernel);
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "CUDA could not start a kernel: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace hires_gan
