// CRC-32 (IEEE, as zlib): what the head of a coded matrix says of its tensors. No torch.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace codecllm {

// Carry-less multiplication of 64 bytes at a time (AVX-512), of 16, or none: tables.
enum class Crc32Way { tables, pclmul, vpclmul };

bool crc32_supported(Crc32Way);

// Of `bytes` bytes; `before`: of those in front of them, 0 if there are none.
uint32_t crc32(Crc32Way, uint32_t before, const uint8_t* at, size_t bytes);

// Of two runs of bytes, one after the other; `bytes`: of the second.
uint32_t crc32_combine(uint32_t first, uint32_t second, uint64_t bytes);

}  // namespace codecllm
