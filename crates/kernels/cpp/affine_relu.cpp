// relu(a x + b) with a scale and a shift for each sample and channel, in one pass forward and one backward.
#include "shared.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using basin::Bfloat16;
using basin::load;
using basin::store;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `x` and `y` `[pixels, channels]`. What is not a number stays so, as in libtorch: a search must see that it diverged.
template <typename T>
inline __attribute__((always_inline)) void forward_of(const T *x, const float *a, const float *b, T *y, int64_t pixels,
                                                      int64_t channels) {
    for (int64_t p = 0; p < pixels; ++p) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            float v = a[c] * load(x[p * channels + c]) + b[c];
            store(y[p * channels + c], v < 0.0f ? 0.0f : v);
        }
    }
}

// `gx` of `g`, and what to add to `ga` and `gb`.
template <typename T>
inline __attribute__((always_inline)) void backward_of(const T *x, const T *y, const float *a, const T *g, T *gx, float *ga,
                                                       float *gb, int64_t pixels, int64_t channels) {
    for (int64_t p = 0; p < pixels; ++p) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            int64_t i = p * channels + c;
            float through = load(y[i]) <= 0.0f ? 0.0f : load(g[i]);
            store(gx[i], through * a[c]);
            ga[c] += through * load(x[i]);
            gb[c] += through;
        }
    }
}

// The compiler makes versions of functions only, not of templates.
#define BASIN_VERSIONS(T)                                                                                                        \
    BASIN_CLONES void forward(const T *x, const float *a, const float *b, T *y, int64_t pixels, int64_t channels) {              \
        forward_of(x, a, b, y, pixels, channels);                                                                                \
    }                                                                                                                            \
    BASIN_CLONES void backward(const T *x, const T *y, const float *a, const T *g, T *gx, float *ga, float *gb, int64_t pixels,  \
                               int64_t channels) {                                                                               \
        backward_of(x, y, a, g, gx, ga, gb, pixels, channels);                                                                   \
    }
BASIN_VERSIONS(float)
BASIN_VERSIONS(Bfloat16)

// Numbers of a sample's scales or shifts `[1 or n, c, 1, 1]`.
const float *row(const Tensor &t, int64_t sample) {
    return t.const_data_ptr<float>() + (t.size(0) == 1 ? 0 : sample * t.stride(0));
}

bool fits(const Tensor &x, const Tensor &t) {
    return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.dim() == 4 && t.size(1) == x.size(1) && t.stride(1) == 1 &&
           (t.size(0) == 1 || t.size(0) == x.size(0)) && t.size(2) == 1 && t.size(3) == 1;
}

struct AffineRelu : torch::autograd::Function<AffineRelu> {
    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &a, const Tensor &b) {
        const int64_t n = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3), part = pixels * channels;
        Tensor y = at::empty_like(x, at::MemoryFormat::ChannelsLast);
        basin::with_numbers(x, [&](auto *from) {
            auto *to = static_cast<decltype(from)>(y.data_ptr());
            at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                    ::forward(from + i * part, row(a, i), row(b, i), to + i * part, pixels, channels);
                }
            });
        });
        context->save_for_backward({x, y, a});
        context->saved_data["shared"] = b.size(0) == 1 && n > 1;
        return y;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &y = saved[1], &a = saved[2];
        const Tensor g = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
        const int64_t n = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3), part = pixels * channels;
        Tensor gx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
        Tensor ga = at::zeros({n, channels, 1, 1}, a.options()), gb = at::zeros_like(ga);
        float *pga = ga.mutable_data_ptr<float>(), *pgb = gb.mutable_data_ptr<float>();
        basin::with_numbers(x, [&](auto *px) {
            auto numbers = [&](const Tensor &t) { return static_cast<decltype(px)>(t.data_ptr()); };
            auto *py = numbers(y), *pg = numbers(g), *pgx = numbers(gx);
            at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                    ::backward(px + i * part, py + i * part, row(a, i), pg + i * part, pgx + i * part, pga + i * channels,
                               pgb + i * channels, pixels, channels);
                }
            });
        });
        auto like = [](const Tensor &gradient, bool shared) { return shared ? gradient.sum(0, true) : gradient; };
        return {gx, like(ga, a.size(0) == 1 && n > 1), like(gb, context->saved_data["shared"].toBool())};
    }
};

}  // namespace

extern "C" char *basin_affine_relu(const Tensor *x, const Tensor *a, const Tensor *b, Tensor **out) {
    return basin::guarded([&] {
        const bool fast = basin::channels_innermost(*x) && fits(*x, *a) && fits(*x, *b);
        *out = new Tensor(fast ? AffineRelu::apply(*x, *a, *b) : at::addcmul(*b, *x, *a).relu_().to(x->scalar_type()));
    });
}
