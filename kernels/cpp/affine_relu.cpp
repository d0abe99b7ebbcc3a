// relu(a x + b) with a scale and a shift for each sample and channel, in one pass forward and one backward.
#include "shared.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `x` and `y` `[pixels, channels]`.
BASIN_CLONES void forward(const float *x, const float *a, const float *b, float *y, int64_t pixels, int64_t channels) {
    for (int64_t p = 0; p < pixels; ++p) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            float v = a[c] * x[p * channels + c] + b[c];
            y[p * channels + c] = v > 0.0f ? v : 0.0f;
        }
    }
}

// `gx` of `g`, and what to add to `ga` and `gb`.
BASIN_CLONES void backward(const float *x, const float *y, const float *a, const float *g, float *gx, float *ga, float *gb,
                           int64_t pixels, int64_t channels) {
    for (int64_t p = 0; p < pixels; ++p) {
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            int64_t i = p * channels + c;
            float through = y[i] > 0.0f ? g[i] : 0.0f;
            gx[i] = through * a[c];
            ga[c] += through * x[i];
            gb[c] += through;
        }
    }
}

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
        const float *from = x.const_data_ptr<float>();
        float *to = y.mutable_data_ptr<float>();
        at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                ::forward(from + i * part, row(a, i), row(b, i), to + i * part, pixels, channels);
            }
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
        Tensor ga = at::zeros({n, channels, 1, 1}, x.options()), gb = at::zeros_like(ga);
        const float *px = x.const_data_ptr<float>(), *py = y.const_data_ptr<float>(), *pg = g.const_data_ptr<float>();
        float *pgx = gx.mutable_data_ptr<float>(), *pga = ga.mutable_data_ptr<float>(), *pgb = gb.mutable_data_ptr<float>();
        at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                ::backward(px + i * part, py + i * part, row(a, i), pg + i * part, pgx + i * part, pga + i * channels,
                           pgb + i * channels, pixels, channels);
            }
        });
        auto like = [](const Tensor &gradient, bool shared) { return shared ? gradient.sum(0, true) : gradient; };
        return {gx, like(ga, a.size(0) == 1 && n > 1), like(gb, context->saved_data["shared"].toBool())};
    }
};

}  // namespace

extern "C" char *basin_affine_relu(const Tensor *x, const Tensor *a, const Tensor *b, Tensor **out) {
    return basin::guarded([&] {
        const bool fast = basin::channels_innermost(*x) && fits(*x, *a) && fits(*x, *b);
        *out = new Tensor(fast ? AffineRelu::apply(*x, *a, *b) : at::addcmul(*b, *x, *a).relu_());
    });
}
