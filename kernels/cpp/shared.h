// What the kernels have in common: the C interface with errors as text, and the layout that they work on.
#pragma once

#include <ATen/ATen.h>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

// The best instructions that the processor has, chosen when the program starts.
#define BASIN_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))

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

// Whether a tensor `[n, c, h, w]` of floats is one run of numbers in memory, channels innermost, on the CPU.
inline bool channels_innermost(const at::Tensor &x) {
    return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace basin
