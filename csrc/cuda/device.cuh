// The few instructions that CUDA C++ has no words for. Under CLLM_EMU (tests/cuda/emu) each has a
// plain C++ twin, so that kernels run unmodified on a CPU.
#pragma once
#include "../core/format.h"

#if defined(__CUDACC__)
#define CLLM_DEVICE __device__ __forceinline__
#define CLLM_SHARED_MEMORY(T, name) extern __shared__ T name[]
#else
#define CLLM_DEVICE inline
#endif

namespace codecllm::cuda {

using SharedAddress = uint32_t;  // bytes from the start of the block's shared memory window

#if !defined(CLLM_EMU)

CLLM_DEVICE SharedAddress shared_address(const void* p) {
  return SharedAddress(__cvta_generic_to_shared(p));
}
CLLM_DEVICE uint32_t load_shared32(SharedAddress a) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(a));
  return v;
}
CLLM_DEVICE uint32_t load_shared16(SharedAddress a) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(a));
  return v;
}
CLLM_DEVICE uint4 load_shared128(SharedAddress a) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(a));
  return v;
}
// Weights are read once: they shall not push x and tables out of the first-level cache.
CLLM_DEVICE uint32_t load_once32(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
CLLM_DEVICE uint2 load_once64(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p));
  return v;
}
CLLM_DEVICE uint4 load_once128(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
CLLM_DEVICE void copy_async16(SharedAddress to, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
  const uint4 v = load_once128(from);
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
#endif
}
CLLM_DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// d += a * b of one warp, fragments as PTX lays them out. B16 is Bf16 or Fp16.
template <class B16>
CLLM_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint2 b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kSameKind<B16, Bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
#endif
}

// `v` as it is, in a register of each lane: the compiler can no longer know that it is the same in
// all of them, and keeps it out of the uniform registers, which not every instruction takes.
CLLM_DEVICE uint32_t own(uint32_t v) { return __shfl_sync(~0u, v, threadIdx.x & 31); }
// A value that all lanes have, made so that the compiler knows it: loops over it do not diverge.
CLLM_DEVICE int uniform(int v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(~0u, v);
#else
  return __shfl_sync(~0u, v, 0);
#endif
}

// a * b + c, one instruction: the FMA pipe's, which has room. The compiler likes shifts and masks.
CLLM_DEVICE uint32_t mad(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// Bits of `a` where the mask has ones, of `b` elsewhere.
CLLM_DEVICE uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(d) : "r"(a), "r"(b), "r"(mask));
  return d;
}
CLLM_DEVICE bool any_lane(bool p) { return __any_sync(~0u, p); }
CLLM_DEVICE int count_ones(uint32_t v) { return __popc(v); }

#endif  // CLLM_EMU

// a * b + c in each half, rounded once: two numbers of B16 (Bf16 or Fp16) to a register. Only from
// sm_80 on, as everything that multiplies with MMAs; zero before.
template <class B16>
CLLM_DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
#if defined(CLLM_EMU)
  return emulated_fma2<B16>(a, b, c);
#else
  uint32_t d = 0;
#if __CUDA_ARCH__ >= 800
  if constexpr (kSameKind<B16, Bf16>)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
#endif
  return d;
#endif
}

}  // namespace codecllm::cuda
