//! Our kernels against libtorch's operations: the same numbers up to rounding, forward and backward.

use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Random numbers `[n, c, h, w]` with channels innermost in memory.
fn maps(shape: [i64; 4]) -> Tensor {
    let [n, c, h, w] = shape;
    Tensor::randn([n, h, w, c], FLOAT).permute([0, 3, 1, 2])
}

fn close(what: &str, ours: &Tensor, reference: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), reference.size(), "{what}");
    let error = (ours.to_kind(Kind::Float) - reference).abs().max().double_value(&[]);
    let scale = reference.abs().max().double_value(&[]);
    assert!(error <= tolerance * scale, "{what}: {error} of {scale}");
}

/// The value and the gradients of a weighted sum of it.
fn gradients(value: &Tensor, of: &[&Tensor]) -> Vec<Tensor> {
    let size = value.size().iter().product::<i64>();
    let weights = (Tensor::arange(size, FLOAT) * 0.37).sin().view(value.size().as_slice());
    Tensor::run_backward(&[(value * weights).sum(Kind::Float)], of, false, false)
}

#[test]
fn an_affine_relu_is_that_of_libtorch() {
    tch::manual_seed(1);
    // Per sample, as parts of one product; and one for all samples.
    for rows in [3, 1] {
        let x = maps([3, 20, 5, 7]).set_requires_grad(true);
        let both = Tensor::randn([rows, 40, 1, 1], FLOAT).set_requires_grad(true);
        let run = |fast: bool| {
            let parts = both.split_with_sizes([20, 20], 1);
            let y = match fast {
                true => kernels::affine_relu(&x, &parts[0], &parts[1]),
                false => parts[1].addcmul(&x, &parts[0]).relu(),
            };
            let gradients = gradients(&y, &[&x, &both]);
            (y, gradients)
        };
        let ((y, ours), (reference, theirs)) = (run(true), run(false));
        close("value", &y, &reference, 1e-6);
        close("gradient of x", &ours[0], &theirs[0], 1e-6);
        close("gradient of a and b", &ours[1], &theirs[1], 1e-5);
    }
}

#[test]
fn another_layout_gives_the_same() {
    tch::manual_seed(2);
    let (x, a, b) = (maps([2, 8, 4, 4]), Tensor::randn([2, 8, 1, 1], FLOAT), Tensor::randn([2, 8, 1, 1], FLOAT));
    let (fast, composed) = (kernels::affine_relu(&x, &a, &b), kernels::affine_relu(&x.contiguous(), &a, &b));
    close("value", &fast, &composed, 1e-6);
}

#[test]
fn a_unit_distance_is_that_of_lpips_and_safe_where_a_vector_is_zero() {
    tch::manual_seed(3);
    for targets in [1, 2] {
        let x = maps([2, 24, 6, 5]).relu();
        // A flat background: vectors that are all zero.
        let _ = x.narrow(2, 0, 2).zero_();
        let x = x.detach().set_requires_grad(true);
        let target = maps([targets, 24, 6, 5]).relu();
        let target = &target / (target.square().sum_dim_intlist(1, true, Kind::Float).sqrt() + 1e-10);
        let target = target.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let head = Tensor::rand([1, 24, 1, 1], FLOAT);
        let weights = Tensor::rand([targets, 1, 6, 5], FLOAT);
        let distance = kernels::unit_distance(&x, &target, &head, &weights);
        let norm = x.square().sum_dim_intlist(1, true, Kind::Float).clamp_min(1e-30).sqrt() + 1e-10;
        let reference = ((&x / norm - &target).square() * &head).sum_dim_intlist(1, true, Kind::Float) * &weights;
        let reference = reference.sum_dim_intlist(&[1i64, 2, 3][..], false, Kind::Float);
        close("value", &distance, &reference, 1e-6);
        let (ours, theirs) = (gradients(&distance, &[&x]), gradients(&reference, &[&x]));
        assert_eq!(ours[0].isfinite().all().int64_value(&[]), 1);
        // Where a vector is zero its gradient is 1e15 times as large: both are compared apart.
        for rows in [0..2, 2..6] {
            let part = |t: &Tensor| t.narrow(2, rows.start, rows.end - rows.start);
            close("gradient", &part(&ours[0]), &part(&theirs[0]), 1e-5);
        }
    }
}

#[test]
fn bfloat16_is_rounded_once_and_what_is_not_a_number_stays() {
    tch::manual_seed(4);
    let (x, a, b) =
        (maps([2, 8, 4, 4]).to_kind(Kind::BFloat16), Tensor::randn([2, 8, 1, 1], FLOAT), Tensor::randn([2, 8, 1, 1], FLOAT));
    let x = x.set_requires_grad(true);
    let y = kernels::affine_relu(&x, &a, &b);
    assert_eq!(y.kind(), Kind::BFloat16);
    let exact = b.addcmul(&x.to_kind(Kind::Float), &a).relu();
    let rounded = exact.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    // Fused products differ in the last bit, which may turn a rounding.
    close("value", &y, &rounded, 4e-3);
    let (ours, theirs) = (gradients(&y.to_kind(Kind::Float), &[&x]), gradients(&exact, &[&x]));
    close("gradient", &ours[0], &theirs[0].to_kind(Kind::Float), 1e-2);
    for kind in [Kind::Float, Kind::BFloat16] {
        let bad = maps([1, 8, 2, 2]).fill(f64::NAN).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]).to_kind(kind);
        let one = |t: &Tensor| t.narrow(0, 0, 1);
        assert_eq!(kernels::affine_relu(&bad, &one(&a), &one(&b)).isnan().all().int64_value(&[]), 1);
    }
}

#[test]
#[should_panic(expected = "size")]
fn shapes_that_do_not_fit_are_refused() {
    let _ = kernels::affine_relu(&maps([2, 8, 4, 4]), &Tensor::zeros([2, 7, 1, 1], FLOAT), &Tensor::zeros([2, 7, 1, 1], FLOAT));
}

#[test]
fn a_profile_counts_operations() {
    let x = Tensor::ones([4], FLOAT);
    let operations = kernels::profile(|| {
        for _ in 0..3 {
            let _ = x.sinh();
        }
    });
    let found = operations.iter().find(|o| o.name == "aten::sinh").map(|o| o.calls);
    assert_eq!(found, Some(3));
}
