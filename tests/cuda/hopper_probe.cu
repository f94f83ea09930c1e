// The probe of sm_90a on a GPU.
#include "cuda/common/tensor_map.cuh"
#include "hopper_probe.h"
#include "on_gpu.cuh"

namespace jaxsparse::cuda {
namespace {

CUtensorMap Map(const BoxedArray& array, bool is_bfloat16) {
  CUtensorMap map;
  const Status status = EncodeTensorMap(array, is_bfloat16, &map);
  if (status.ok()) return map;
  std::fprintf(stderr, "%s\n", status.message.c_str());
  std::exit(1);
}

}  // namespace
}  // namespace jaxsparse::cuda

int main() {
  using namespace jaxsparse::cuda;
  ForEachHopperElement([](const char* name, auto element, HopperProbeData data) {
    const bool is_bfloat16 = name[0] == 'b';
    const uint16_t* from = OnDevice(data.from);
    uint16_t* to = OnDevice(data.to);
    uint16_t* lies = OnDevice(data.lies);
    float* sums = OnDevice(data.sums);
    RunOnGpu<HopperProbe<decltype(element)>>({Map({from, 1, 128, 128, 128}, is_bfloat16),
                                              Map({to, 1, 60, 64, 64}, is_bfloat16), lies, sums});
    ToHost(data.to, to);
    ToHost(data.lies, lies);
    ToHost(data.sums, sums);
    Print(name, data);
  });
}
