// Memory for large outputs that is kept for the next one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qsam2 {

// From one megabyte on, fresh pages cost more than the arithmetic that fills them, and the C library gives large blocks
// back at once; so freed blocks are kept here, up to 256 MiB, until none was freed for half a minute.
constexpr size_t kWorthKeeping = size_t(1) << 20;

struct Block {
  void* data;
  size_t bytes;
};

// A block of at least so many bytes.
Block take_block(size_t bytes);

void give_block(const Block& block);

// Gives all of them back now; how many bytes they were.
int64_t trim_pool();

}  // namespace qsam2
