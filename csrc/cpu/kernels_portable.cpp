// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#include "kernels_impl.h"

namespace codecllm {

static bool supported() { return true; }

extern const Kernels kPortable = {"portable",           supported, false,
                                  decode_rows_of_tiles, decode_as, linear};

}  // namespace codecllm
