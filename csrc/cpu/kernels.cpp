// The choice of instruction set.
#include "kernels.h"

#include <string.h>

#include <atomic>

#include "scratch.h"

namespace codecllm {

static const Kernels* const kAll[] = {
#ifndef CLLM_NO_X86
    &kAvx512Bf16, &kAvx512, &kAvx2,
#endif
    &kPortable, nullptr};

static std::atomic<const Kernels*> chosen{nullptr};

const Kernels* const* all_kernels() { return kAll; }

static const Kernels* fastest() {
  const Kernels* const* k = kAll;
  while (!(*k)->supported()) ++k;
  return *k;
}

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_acquire);
  if (!k) {
    k = fastest();
    chosen.store(k, std::memory_order_release);
  }
  return *k;
}

bool select_kernels(const char* name) {
  const Kernels* found = *name ? nullptr : fastest();
  for (const Kernels* const* k = kAll; *k && !found; ++k)
    if (!strcmp((*k)->name, name) && (*k)->supported()) found = *k;
  if (found) chosen.store(found, std::memory_order_release);
  return found;
}

int64_t scratch_bytes(const CodedView& view, int64_t m) { return Scratch::bytes(view, m); }

}  // namespace codecllm
