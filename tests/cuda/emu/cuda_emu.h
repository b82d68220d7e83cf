// Runs unmodified CUDA kernels on the CPU: one fiber per thread, blocks one after the other.
//
// What it checks that a GPU would not: every shared-memory access stays inside what the launch
// asked for and is aligned; a collective that only some lanes of a warp reach ends the program;
// shared memory begins with random bytes. What it cannot see: races between barriers, memory
// ordering.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../../../csrc/core/convert.h"

#define CLLM_EMU 1
#define __global__ static
#define __launch_bounds__(...)
#define __shared__ static
#define CLLM_SHARED_MEMORY(T, name) T* name = (T*)emu::state.shared.data()
#define __CUDA_ARCH__ 900

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace emu {

constexpr size_t kFence = 64 << 10;
constexpr uint8_t kFenceByte = 0x5e;

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
};

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulator: %s\n", what);
  abort();
}

struct Barrier {
  int arrived = 0, generation = 0, members = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t slots[32][4];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[256 << 10]};
  bool done = false;
};

struct State {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<uint8_t> shared;
  Barrier block;
  ucontext_t scheduler;
  Dim thread, block_index, block_dim, grid_dim;
  int current = 0;
  long progress = 0;
  std::function<void()> kernel;
};
inline State state;

inline void yield() {
  Fiber& me = state.fibers[size_t(state.current)];
  swapcontext(&me.context, &state.scheduler);
}

inline void wait(Barrier& b) {
  const int generation = b.generation;
  ++state.progress;
  if (++b.arrived == b.members) {
    b.arrived = 0;
    ++b.generation;
  } else {
    while (b.generation == generation) yield();
  }
}

inline void leave(Barrier& b) {
  if (--b.members && b.arrived == b.members) b.arrived = 0, ++b.generation;
}

inline void entry() {
  state.kernel();
  const int me = state.current;
  state.fibers[size_t(me)].done = true;
  ++state.progress;
  leave(state.block);
  if (state.warps[size_t(me / 32)].barrier.arrived)
    fail("a thread ended while others of its warp wait in a collective");
  leave(state.warps[size_t(me / 32)].barrier);
  swapcontext(&state.fibers[size_t(me)].context, &state.scheduler);
}

inline void run_block(int threads) {
  state.fibers = std::vector<Fiber>(size_t(threads));
  state.warps = std::vector<Warp>(size_t(threads / 32));
  state.block = {0, 0, threads};
  for (Warp& w : state.warps) w.barrier = {0, 0, 32};
  for (Fiber& f : state.fibers) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = 256 << 10;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  for (int left = threads; left;) {
    const long before = state.progress;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      if (state.fibers[size_t(i)].done) continue;
      state.current = i;
      swapcontext(&state.scheduler, &state.fibers[size_t(i)].context);
      left += !state.fibers[size_t(i)].done;
    }
    if (left && state.progress == before) fail("threads wait for others that never come");
  }
}

template <class Kernel, class... Args>
void launch(Kernel kernel, Dim grid, int threads, int shared_bytes, const Args&... args) {
  if (threads % 32) fail("blocks are whole warps");
  static std::mt19937 random(1);
  state.grid_dim = grid;
  state.block_dim = Dim{uint32_t(threads), 1, 1};
  state.kernel = [=] { kernel(args...); };
  for (uint32_t y = 0; y < grid.y; ++y) {
    for (uint32_t x = 0; x < grid.x; ++x) {
      state.block_index = {x, y, 0};
      state.shared.assign(size_t(shared_bytes), 0);
      for (uint8_t& b : state.shared) b = uint8_t(random());
      // What is written through plain pointers beyond the block shows in a fence behind it.
      state.shared.resize(size_t(shared_bytes) + kFence, kFenceByte);
      run_block(threads);
      for (size_t i = size_t(shared_bytes); i < state.shared.size(); ++i)
        if (state.shared[i] != kFenceByte) fail("shared memory: written out of bounds");
    }
  }
}

// The tensors that kernels may read.
struct Range {
  const uint8_t *begin, *end;
};
inline std::vector<Range> readable;

inline const void* global_at(const void* p, size_t bytes) {
  const uint8_t* at = (const uint8_t*)p;
  for (const Range& r : readable)
    if (at >= r.begin && at + bytes <= r.end) return p;
  fail("global memory: out of bounds");
}

inline int lane() { return state.current % 32; }
inline Warp& warp() { return state.warps[size_t(state.current / 32)]; }

// All lanes give `mine`, then each reads what it likes of the others'.
template <class T, class F>
auto collective(const T& mine, F&& read) {
  static_assert(sizeof(T) <= sizeof(Warp::slots[0]));
  Warp& w = warp();
  memcpy(w.slots[lane()], &mine, sizeof mine);
  wait(w.barrier);
  auto result = read([&w](int l) {
    T v;
    memcpy(&v, w.slots[l], sizeof v);
    return v;
  });
  wait(w.barrier);
  return result;
}

inline const uint8_t* shared_at(uint32_t address, uint32_t bytes) {
  if (uint64_t(address) + bytes > state.shared.size() - kFence)
    fail("shared memory: out of bounds");
  if (address % bytes) fail("shared memory: misaligned");
  return state.shared.data() + address;
}

}  // namespace emu

#define threadIdx (emu::Dim{uint32_t(emu::state.current), 0, 0})
#define blockIdx (emu::state.block_index)
#define blockDim (emu::state.block_dim)
#define gridDim (emu::state.grid_dim)

inline void __syncthreads() { emu::wait(emu::state.block); }
inline void __syncwarp() { emu::wait(emu::warp().barrier); }
template <class T>
T __ldg(const T* p) {
  return *(const T*)emu::global_at(p, sizeof *p);
}
template <class T>
T __shfl_sync(unsigned, T v, int from, int width = 32) {
  const int base = emu::lane() / width * width;
  return emu::collective(v, [=](auto at) { return at(base + from % width); });
}
template <class T>
T __shfl_up_sync(unsigned, T v, int distance, int width = 32) {
  const int me = emu::lane(), from = me % width >= distance ? me - distance : me;
  return emu::collective(v, [=](auto at) { return at(from); });
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  const int from = emu::lane() ^ mask;
  return emu::collective(v, [=](auto at) { return at(from); });
}
inline unsigned __ballot_sync(unsigned, int p) {
  return emu::collective(p, [](auto at) {
    unsigned bits = 0;
    for (int l = 0; l < 32; ++l) bits |= unsigned(at(l) != 0) << l;
    return bits;
  });
}
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == ~0u; }
inline unsigned long long atomicMin(unsigned long long* p, unsigned long long v) {
  const unsigned long long old = *p;
  if (v < old) *p = v;
  return old;
}

namespace codecllm::cuda {

inline uint32_t shared_address(const void* p) {
  return uint32_t((const uint8_t*)p - emu::state.shared.data());
}
template <class T>
T load_shared(uint32_t a) {
  T v;
  memcpy(&v, emu::shared_at(a, sizeof v), sizeof v);
  return v;
}
inline uint32_t load_shared32(uint32_t a) { return load_shared<uint32_t>(a); }
inline uint32_t load_shared16(uint32_t a) { return load_shared<uint16_t>(a); }
inline uint4 load_shared128(uint32_t a) { return load_shared<uint4>(a); }
template <class T>
T load_once(const void* p) {
  if (uintptr_t(p) % sizeof(T)) emu::fail("global memory: misaligned");
  T v;
  memcpy(&v, emu::global_at(p, sizeof v), sizeof v);
  return v;
}
inline uint32_t load_once32(const void* p) { return load_once<uint32_t>(p); }
inline uint2 load_once64(const void* p) { return load_once<uint2>(p); }
inline uint4 load_once128(const void* p) { return load_once<uint4>(p); }
inline void copy_async16(uint32_t to, const void* from) {
  const uint4 v = load_once128(from);
  memcpy(const_cast<uint8_t*>(emu::shared_at(to, sizeof v)), &v, sizeof v);
}
inline void wait_for_copies() {}
inline uint32_t own(uint32_t v) { return v; }
inline int uniform(int v) {
  return emu::collective(v, [](auto at) {
    for (int l = 0; l < 32; ++l)
      if (at(l) != at(0)) emu::fail("a value that should be the same in all lanes is not");
    return at(0);
  });
}
inline uint32_t mad(uint32_t a, uint32_t b, uint32_t c) { return a * b + c; }
inline uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  return (a & mask) | (b & ~mask);
}
inline void take_word(bool wanted, uint32_t& next, uint32_t& at) {
  if (!wanted) return;
  at += 2;
  next = load_shared16(at);
}
inline void refill(uint32_t& state, uint32_t& next, uint32_t& at) {
  if (state >= 65536) return;
  state = state << 16 | next;
  take_word(true, next, at);
}
inline bool any_lane(bool p) { return __ballot_sync(~0u, p) != 0; }
inline int count_ones(uint32_t v) { return __builtin_popcount(v); }

// d += a * b: products exact, sums rounded to float32 in the order of k.
template <class B16>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint2 b) {
  struct Fragments {
    uint32_t a[4];
    uint2 b;
  } mine = {{a[0], a[1], a[2], a[3]}, b};
  const int g = emu::lane() / 4, t = emu::lane() % 4;
  emu::collective(mine, [&](auto at) {
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
      for (int k = 0; k < 16; ++k) {
        const int half = 16 * (k & 1);
        const uint32_t wa = at(row % 8 * 4 + k % 8 / 2).a[row / 8 + 2 * (k / 8)];
        const uint2 xb = at(column * 4 + k % 8 / 2).b;
        d[i] = fmaf(word_value<B16>(wa >> half & 0xffff),
                    word_value<B16>((k / 8 ? xb.y : xb.x) >> half & 0xffff), d[i]);
      }
    }
    return 0;
  });
}

template <class B16>
uint32_t emulated_fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int half = 0; half < 32; half += 16) {
    const auto value = [=](uint32_t v) { return word_value<B16>(v >> half & 0xffff); };
    out |= round_bits<B16>(fmaf(value(a), value(b), value(c))) << half;
  }
  return out;
}

}  // namespace codecllm::cuda
