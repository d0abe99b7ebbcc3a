// LPIPS' distance between feature maps: vectors of unit length, squared difference, a weight for each channel and pixel.
#include "shared.h"

#include <ATen/Parallel.h>
#include <cmath>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using basin::Bfloat16;
using basin::load;
using basin::store;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Added to the norm of a feature vector (reference: `normalize_tensor`).
constexpr float NORM_EPS = 1e-10f;
// Below this squared norm the root has no gradient (richzhang/PerceptualSimilarity#69).
constexpr float SAFE_SQUARE = 1e-30f;

template <typename T>
inline __attribute__((always_inline)) float square_of(const T *x, int64_t channels) {
    float square = 0.0f;
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < channels; ++c) square += load(x[c]) * load(x[c]);
    return square;
}

inline __attribute__((always_inline)) float root_of(float square) { return std::sqrt(square > SAFE_SQUARE ? square : SAFE_SQUARE); }

// Sum over the pixels of w h (x / norm - t)^2.
template <typename T>
inline __attribute__((always_inline)) double forward_of(const T *x, const float *t, const float *head, const float *w,
                                                        int64_t pixels, int64_t channels) {
    double total = 0.0;
    for (int64_t p = 0; p < pixels; ++p, x += channels, t += channels) {
        const float scale = 1.0f / (root_of(square_of(x, channels)) + NORM_EPS);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < channels; ++c) {
            float d = load(x[c]) * scale - t[c];
            sum += head[c] * d * d;
        }
        total += w[p] * sum;
    }
    return total;
}

// `gx` by pixel: e / norm - x (e . x) / (norm^2 |x|) with e = 2 g w h (x / norm - t).
template <typename T>
inline __attribute__((always_inline)) void backward_of(const T *x, const float *t, const float *head, const float *w, float g, T *gx,
                                                       int64_t pixels, int64_t channels) {
    for (int64_t p = 0; p < pixels; ++p, x += channels, t += channels, gx += channels) {
        const float square = square_of(x, channels), root = root_of(square), scale = 1.0f / (root + NORM_EPS);
        const float weight = 2.0f * g * w[p];
        float along = 0.0f;
#pragma omp simd reduction(+ : along)
        for (int64_t c = 0; c < channels; ++c) along += weight * head[c] * (load(x[c]) * scale - t[c]) * load(x[c]);
        const float back = square > SAFE_SQUARE ? along * scale * scale / root : 0.0f;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
            float v = load(x[c]);
            store(gx[c], weight * head[c] * (v * scale - t[c]) * scale - v * back);
        }
    }
}

// The compiler makes versions of functions only, not of templates.
#define BASIN_VERSIONS(T)                                                                                                       \
    BASIN_CLONES double forward(const T *x, const float *t, const float *head, const float *w, int64_t pixels, int64_t channels) { \
        return forward_of(x, t, head, w, pixels, channels);                                                                     \
    }                                                                                                                           \
    BASIN_CLONES void backward(const T *x, const float *t, const float *head, const float *w, float g, T *gx, int64_t pixels,   \
                               int64_t channels) {                                                                              \
        backward_of(x, t, head, w, g, gx, pixels, channels);                                                                    \
    }
BASIN_VERSIONS(float)
BASIN_VERSIONS(Bfloat16)

// A part of a tensor whose first size is 1 or the number of samples.
const float *part(const Tensor &t, int64_t sample, int64_t numbers) {
    return t.const_data_ptr<float>() + (t.size(0) == 1 ? 0 : sample * numbers);
}

struct UnitDistance : torch::autograd::Function<UnitDistance> {
    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &target, const Tensor &head,
                          const Tensor &weights) {
        const int64_t n = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
        Tensor out = at::empty({n}, head.options());
        float *to = out.mutable_data_ptr<float>();
        const float *h = head.const_data_ptr<float>();
        basin::with_numbers(x, [&](auto *from) {
            at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                    const float *t = part(target, i, pixels * channels), *w = part(weights, i, pixels);
                    to[i] = static_cast<float>(::forward(from + i * pixels * channels, t, h, w, pixels, channels));
                }
            });
        });
        context->save_for_backward({x, target, head, weights});
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &target = saved[1], &head = saved[2], &weights = saved[3];
        const int64_t n = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
        const Tensor g = gradients[0].contiguous();
        Tensor gx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
        const float *h = head.const_data_ptr<float>(), *pg = g.const_data_ptr<float>();
        basin::with_numbers(x, [&](auto *from) {
            auto *to = static_cast<decltype(from)>(gx.data_ptr());
            at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                    const float *t = part(target, i, pixels * channels), *w = part(weights, i, pixels);
                    ::backward(from + i * pixels * channels, t, h, w, pg[i], to + i * pixels * channels, pixels, channels);
                }
            });
        });
        return {gx, Tensor(), Tensor(), Tensor()};
    }
};

Tensor composed(const Tensor &numbers, const Tensor &target, const Tensor &head, const Tensor &weights) {
    const Tensor x = numbers.to(at::kFloat);
    const Tensor norm = x.square().sum(1, true).clamp_min(SAFE_SQUARE).sqrt() + NORM_EPS;
    const Tensor difference = ((x / norm - target).square() * head).sum(1, true);
    return (difference * weights).sum({1, 2, 3});
}

bool one_or(int64_t size, int64_t n) { return size == 1 || size == n; }

// The target, its weights and the head get no gradient here.
bool fits(const Tensor &x, const Tensor &target, const Tensor &head, const Tensor &weights) {
    const int64_t n = x.size(0);
    return basin::channels_innermost(x) && basin::channels_innermost(target) && target.scalar_type() == at::kFloat && weights.is_contiguous() && head.is_contiguous() &&
           weights.device().is_cpu() && head.device().is_cpu() && weights.scalar_type() == at::kFloat &&
           head.scalar_type() == at::kFloat && one_or(target.size(0), n) && one_or(weights.size(0), n) &&
           target.sizes().slice(1) == x.sizes().slice(1) && head.numel() == x.size(1) &&
           weights.numel() == weights.size(0) * x.size(2) * x.size(3) && !target.requires_grad() && !head.requires_grad() &&
           !weights.requires_grad();
}

}  // namespace

extern "C" char *basin_unit_distance(const Tensor *x, const Tensor *target, const Tensor *head, const Tensor *weights,
                                     Tensor **out) {
    return basin::guarded([&] {
        const bool fast = fits(*x, *target, *head, *weights);
        *out = new Tensor(fast ? UnitDistance::apply(*x, *target, *head, *weights) : composed(*x, *target, *head, *weights));
    });
}
