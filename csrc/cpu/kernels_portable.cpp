// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#include "decode_kernel.h"
#include "linear_kernel.h"

namespace codecllm {

static bool supported() { return true; }

extern const Kernels kPortable = {"portable", supported, false, decode, decode_as, linear};

}  // namespace codecllm
