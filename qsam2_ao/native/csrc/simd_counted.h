// Lanes of CPUs whose loads and stores take no masks: the first ones, counted.
#pragma once

#include <cstdint>
#include <cstring>

namespace qsam2 {

struct Lanes {
  int64_t n;  // the first ones
};

constexpr int64_t kLanes = 16;

inline Lanes first_lanes(int64_t n) { return {n < kLanes ? n : kLanes}; }

// write(to), which writes 16 values, of which only `lanes` reach p.
template <typename T, typename Write>
[[gnu::always_inline]] inline void store_lanes(T* p, Lanes lanes, const Write& write) {
  if (lanes.n == kLanes) return write(p);
  T part[kLanes];
  write(part);
  std::memcpy(p, part, lanes.n * sizeof(T));
}

}  // namespace qsam2
