// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "to_fixed_kernel.h"

namespace codecllm {

static bool supported() { return true; }

extern const Kernels kPortable = {"portable", supported, false,    decode,
                                  decode_as,  linear,    to_fixed, to_fixed_scratch_bytes,
                                  check_fixed};

}  // namespace codecllm
