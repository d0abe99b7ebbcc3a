//! Where seeds start: their transforms and classes. All random numbers follow from the image's seed.

use proto::{ClassStart, Params, Transform, TransformSearch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::lanes::Model;
use crate::latent_search::Rows;
use crate::target::Target;
use crate::transform::Space;

/// Transforms that the seeds start with, where no search comes before: the first is phi_0, the others are draws around it, every other
/// one around that of a truncated object where the box touches the border. They have random numbers of their own, as class vectors have.
pub(crate) fn transforms(
    search: &TransformSearch,
    initial: &Transform,
    truncated: impl Fn(f64) -> Option<Transform>,
    seeds: u32,
    seed: u64,
) -> Vec<Transform> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(2);
    let space = Space::new(search);
    let mut start = |k: u32| {
        let multiple = search.truncated.powf(rng.random::<f64>());
        let around = if k.is_multiple_of(2) { None } else { truncated(multiple) };
        let mut vector = space.vector(around.as_ref().unwrap_or(initial));
        for (i, value) in vector.iter_mut().enumerate() {
            let angle = search.rotation.filter(|_| space.rotation() == Some(i));
            let deviation = angle.map_or(search.sigma, f64::to_radians);
            let draw: f64 = rng.sample(StandardNormal);
            *value += if k == 0 { 0.0 } else { deviation * draw };
        }
        space.transform(&vector)
    };
    (0..seeds).map(&mut start).collect()
}

/// Class vectors that the seeds start with; `None`: that of the image's class. They have random numbers of their own, so that z starts
/// the same with and without them.
pub(crate) fn classes(params: &Params, model: &Model, target: &Target) -> Option<Rows> {
    if params.class_start == ClassStart::Likely {
        let embed = |class: i64| Vec::try_from(model.generator.embed(class)).expect("an embedding is a vector of floats");
        let classes = classes_of(params, target);
        return (!classes.is_empty()).then(|| classes.into_iter().map(embed).collect());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(target.seed);
    rng.set_stream(1);
    let (classes, width) = (model.generator.num_classes(), model.generator.embed_dim());
    let mut draw = || match params.class_start {
        ClassStart::Class | ClassStart::Likely => None,
        ClassStart::RandomClass => {
            let other = (target.class + rng.random_range(1..classes.max(2))) % classes;
            Some(Vec::try_from(model.generator.embed(other)).expect("an embedding is a vector of floats"))
        }
        ClassStart::Gaussian => Some((0..width).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()),
    };
    (0..params.seeds).map(|_| draw()).collect()
}

/// The class that each seed starts from; empty: the image's class.
pub(crate) fn classes_of(params: &Params, target: &Target) -> Vec<i64> {
    match params.class_start {
        ClassStart::Likely if target.likely.len() > 1 => shared_out(&target.likely, params.seeds as usize),
        _ => vec![],
    }
}

/// Shares seeds out over classes in proportion to their probabilities, by the largest remainders (Hamilton's method). The seeds of a
/// class stand together, those of the most likely class first.
fn shared_out(likely: &[(i64, f64)], seeds: usize) -> Vec<i64> {
    let total: f64 = likely.iter().map(|(_, probability)| probability).sum();
    let quotas: Vec<f64> = likely.iter().map(|(_, probability)| probability / total * seeds as f64).collect();
    let mut shares: Vec<usize> = quotas.iter().map(|quota| quota.floor() as usize).collect();
    let mut by_remainder: Vec<usize> = (0..likely.len()).collect();
    by_remainder.sort_by(|&a, &b| (quotas[b] - quotas[b].floor()).total_cmp(&(quotas[a] - quotas[a].floor())));
    let left = seeds - shares.iter().sum::<usize>();
    by_remainder.iter().cycle().take(left).for_each(|&i| shares[i] += 1);
    likely.iter().zip(shares).flat_map(|(&(class, _), share)| std::iter::repeat_n(class, share)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_shared_out_in_proportion_to_the_probabilities() {
        let shares = |likely: &[(i64, f64)], seeds| {
            let classes = shared_out(likely, seeds);
            assert_eq!(classes.len(), seeds);
            likely.iter().map(|(class, _)| classes.iter().filter(|c| *c == class).count()).collect::<Vec<_>>()
        };
        assert_eq!(shares(&[(7, 0.5), (2, 0.3), (4, 0.2)], 18), [9, 5, 4]);
        assert_eq!(shares(&[(7, 0.6), (2, 0.1)], 18), [15, 3], "the probabilities need not add up to one");
        assert_eq!(shares(&[(7, 0.9), (2, 0.05), (4, 0.05)], 3), [3, 0, 0]);
        assert_eq!(shared_out(&[(7, 0.5), (2, 0.5)], 4), [7, 7, 2, 2]);
    }
}
