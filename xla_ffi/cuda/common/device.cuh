// The device of a stream, and what to say when it refuses.
#pragma once
#include <cuda_runtime.h>

#include "core/status.h"
#include "cuda/block_matmul.h"

namespace jaxsparse::cuda {

// A sentence about what the device refused, with what there is and what is needed.
Status DeviceStatus(cudaError_t error, const char* doing);

// Makes the device of a stream the current one, which launches need, for as long as it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(Stream stream);
  ~OnDeviceOf();
  OnDeviceOf(const OnDeviceOf&) = delete;

  const Status& status() const { return status_; }

 private:
  int before_ = -1;  // to go back to; -1 where nothing was changed
  Status status_;
};

}  // namespace jaxsparse::cuda
