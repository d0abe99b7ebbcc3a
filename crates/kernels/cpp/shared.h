// What the kernels have in common: the C interface with errors as text, and the layout that they work on.
#pragma once

#include <ATen/ATen.h>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

// The best instructions that the processor has, chosen when the program starts.
#define BASIN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

namespace basin {

// Runs `body`; an error's text, to be freed by the caller, or null.
template <typename Body>
char *guarded(Body body) {
    try {
        body();
        return nullptr;
    } catch (const std::exception &error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("an exception of another kind");
    }
}

// bfloat16 in memory: the upper half of a float.
struct Bfloat16 {
    uint16_t bits;
};

inline __attribute__((always_inline)) float load(float v) { return v; }

inline __attribute__((always_inline)) float load(Bfloat16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

inline __attribute__((always_inline)) void store(float &to, float v) { to = v; }

// To the nearest, halves to even; what is not a number stays so.
inline __attribute__((always_inline)) void store(Bfloat16 &to, float v) {
    const uint32_t bits = std::bit_cast<uint32_t>(v);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = static_cast<uint16_t>(v == v ? rounded : 0x7fc0);
}

// Whether loops of ours are left out, so that what a GPU would run can be counted on a CPU.
inline std::atomic<bool> composed_only{false};

// Whether a tensor `[n, c, h, w]` is one run of floats or bfloat16 in memory, channels innermost, on the CPU.
inline bool channels_innermost(const at::Tensor &x) {
    const bool kind = x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
    return !composed_only && kind && x.device().is_cpu() && x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Calls `body` with a pointer to the tensor's numbers.
template <typename Body>
void with_numbers(const at::Tensor &x, Body body) {
    if (x.scalar_type() == at::kFloat) {
        body(static_cast<float *>(x.data_ptr()));
    } else {
        body(static_cast<Bfloat16 *>(x.data_ptr()));
    }
}

}  // namespace basin
