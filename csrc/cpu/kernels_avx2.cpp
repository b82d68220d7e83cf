// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#ifndef CLLM_NO_X86
#include "kernels_impl.h"

namespace codecllm {

static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

extern const Kernels kAvx2 = {"avx2", supported, false, decode_rows_of_tiles, decode_as, linear};

}  // namespace codecllm
#endif
