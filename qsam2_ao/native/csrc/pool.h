// Memory for large outputs that is kept for the next one.
#pragma once

#include <ATen/ATen.h>

namespace qsam2 {

// Like at::empty on the CPU. From one megabyte on, fresh pages cost more than the arithmetic that fills them, and the
// C library gives large blocks back at once; so freed blocks are kept here, up to 256 MiB, until none was freed for ten
// seconds.
at::Tensor pooled(at::IntArrayRef shape, const at::TensorOptions& options);

// Gives all of them back now; how many bytes they were.
int64_t trim_pool();

}  // namespace qsam2
