// The outcome of a kernel: success, or why not, in a sentence for the user.
#pragma once
#include <string>
#include <utility>

namespace jaxsparse {

enum class StatusCode { kOk, kInvalidArgument, kOutOfMemory, kDeviceError };

struct Status {
  StatusCode code = StatusCode::kOk;
  std::string message;

  bool ok() const { return code == StatusCode::kOk; }
  static Status InvalidArgument(std::string why) {
    return {StatusCode::kInvalidArgument, std::move(why)};
  }
  static Status OutOfMemory(std::string why) { return {StatusCode::kOutOfMemory, std::move(why)}; }
  static Status DeviceError(std::string why) { return {StatusCode::kDeviceError, std::move(why)}; }
};

}  // namespace jaxsparse
