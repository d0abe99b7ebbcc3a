//! What `quality` compares: the profiles; the balanced one with each of its ingredients left out; and searches that take the transforms of
//! another.

use proto::{ClassStart, Frame, LatentSearch, Loss, Params, Surround, TransformSearch};

/// Parameters of a search, and where its transforms come from.
#[derive(Clone)]
pub struct Variant {
    pub name: String,
    pub params: Params,
    /// The search whose transforms this one takes as they are; `None`: it finds them itself.
    pub transforms_of: Option<Box<Variant>>,
    /// The second judge is the perceptual network of its loss, in place of the model's own.
    pub by_second_judge: bool,
}

impl Variant {
    fn new(name: &str, params: Params) -> Variant {
        Variant { name: name.into(), params, transforms_of: None, by_second_judge: false }
    }

    /// Its latent search under the transforms of another.
    fn under(name: &str, params: Params, transforms_of: &Params) -> Variant {
        let mut params = params;
        params.descent.lr_transform = 0.0;
        let transforms_of = Some(Box::new(Variant::new("", transforms_of.clone())));
        Variant { transforms_of, ..Variant::new(name, params) }
    }

    /// A text that is different where the result may be.
    pub fn key(&self) -> String {
        // Names of profiles change no number.
        let params = Params { profile: String::new(), ..self.params.clone() }.to_json();
        params + &self.transforms_of.as_ref().map_or(String::new(), |of| of.key())
    }
}

/// Variants that are compared with the first one.
pub struct Comparison {
    pub title: &'static str,
    pub about: &'static str,
    pub variants: Vec<Variant>,
    /// Images of each kind.
    pub most: usize,
}

/// All comparisons; the first is that of the profiles.
pub fn comparisons() -> Vec<Comparison> {
    let [paper, best, balanced, fast] = [Params::paper(), Params::best(), Params::balanced(), Params::fast()];
    let profiles = [&paper, &best, &balanced, &fast].map(|params| Variant::new(&params.profile, params.clone()));
    let crossed = vec![
        Variant::new("paper", paper.clone()),
        Variant::under("paper's latent search, balanced's transforms", paper.clone(), &balanced),
        Variant::under("balanced's latent search, paper's transforms", balanced.clone(), &paper),
        Variant::new("balanced", balanced.clone()),
    ];
    vec![
        Comparison { title: "Profiles", about: "Images that nothing was tuned on.", variants: profiles.to_vec(), most: 64 },
        Comparison {
            title: "Ingredients of `balanced`",
            about: "Each row leaves one ingredient out, at the same lane-steps. A positive difference means that the ingredient helps.",
            variants: without_each(&balanced),
            most: 16,
        },
        Comparison {
            title: "Options of `balanced`",
            about: "What an option costs, or saves, where nothing asks for it.",
            variants: options(&balanced),
            most: 16,
        },
        Comparison {
            title: "Perceptual network of the loss",
            about: "The loss has the second judge in place of the model's own network.",
            variants: std::iter::once(Variant::new("balanced", balanced.clone()))
                .chain([10.0, 30.0].map(|beta| Variant {
                    by_second_judge: true,
                    ..Variant::new(
                        &format!("balanced by the second judge, beta {beta}"),
                        Params { loss: Loss { beta, ..balanced.loss.clone() }, ..balanced.clone() },
                    )
                }))
                .collect(),
            most: 8,
        },
        Comparison {
            title: "Which stage the difference comes from",
            about: "Each latent search under its own transforms, and under those that the other search found, which stay as they are.",
            variants: crossed,
            most: 16,
        },
    ]
}

/// A profile, and the same with options.
fn options(profile: &Params) -> Vec<Variant> {
    let with = |name: &str, change: &dyn Fn(&mut Params)| {
        let mut params = profile.clone();
        change(&mut params);
        Variant::new(name, params)
    };
    vec![
        with(&profile.profile, &|_| {}),
        with("with rotation", &|params| search(params).rotation = Some(30.0)),
        with("with rotation and perspective", &|params| {
            search(params).rotation = Some(30.0);
            search(params).perspective = true;
        }),
        with("without an early end", &|params| {
            let LatentSearch::Halving { converged, .. } = &mut params.latent else { return };
            *converged = None;
        }),
    ]
}

fn search(params: &mut Params) -> &mut TransformSearch {
    params.transform.as_mut().expect("the profile searches a transform")
}

/// A profile, and the same with each of its ingredients left out.
fn without_each(profile: &Params) -> Vec<Variant> {
    let with = |name: &str, change: &dyn Fn(&mut Params)| {
        let mut params = profile.clone();
        change(&mut params);
        Variant::new(name, params)
    };
    let all_seeds = (projector::projection::lane_steps(profile) / u64::from(profile.seeds)) as u32;
    let paper = Params::paper();
    vec![
        with(&profile.profile, &|_| {}),
        with("no weight for the background", &|params| params.loss.background = 0.0),
        with("grey around the object", &|params| params.loss.surround = Surround::Grey),
        with("the transforms have no gradient", &|params| params.descent.lr_transform = 0.0),
        with("all seeds to the end", &|params| params.latent = LatentSearch::Adam { steps: all_seeds }),
        with("constant learning rates", &|params| params.descent.lr_end = 1.0),
        with("the paper's rate of z", &|params| params.descent.lr_z = paper.descent.lr_z),
        with("the paper's rate of c", &|params| params.descent.lr_c = paper.descent.lr_c),
        with("c moves from the first step on", &|params| params.descent.late_c = false),
        with("no larger scales for truncated objects", &|params| search(params).truncated = 1.0),
        with("all seeds start at the same transform", &|params| search(params).sigma = 1e-6),
        with("the paper's first transform", &|params| search(params).initial = search(&mut Params::paper()).initial),
        with("the transform by CMA-ES, in the generator's frame (E1 alone)", &|params| {
            let steps = (20, 10);
            let left = projector::projection::lane_steps(params) - 8 * steps.0 * steps.1;
            let shorter = left as f64 / projector::projection::lane_steps(params) as f64;
            params.class_start = ClassStart::Class;
            params.transform = paper.transform.clone().map(|t| TransformSearch {
                generations: steps.0 as u32,
                steps: steps.1 as u32,
                initial: proto::InitialTransform::Exact,
                ..t
            });
            params.descent.frame = Frame::Generator;
            params.loss.background = paper.loss.background;
            params.descent.lr_transform = 0.0;
            let LatentSearch::Halving { steps, .. } = &mut params.latent else { return };
            steps.iter_mut().for_each(|part| *part = (f64::from(*part) * shorter) as u32);
        }),
        with("BasinCMA in place of halving", &|params| {
            // As `fast` had it before: a third of the work finds the transform.
            params.class_start = ClassStart::Class;
            params.transform = paper.transform.clone().map(|t| TransformSearch { generations: 20, steps: 10, ..t });
            params.descent.lr_transform = 0.0;
            params.seeds = paper.seeds;
            params.latent = LatentSearch::basin_cma(12, 15, 110);
        }),
    ]
}

#[cfg(test)]
mod tests {
    use projector::projection::lane_steps;

    use super::*;

    #[test]
    fn every_variant_is_valid_and_stays_within_its_profile() {
        for Comparison { title, variants, .. } in comparisons() {
            for Variant { name, params, .. } in &variants {
                assert_eq!(params.validate().map_err(|error| error.to_string()), Ok(()), "{title}: {name}");
            }
        }
        let ablations = without_each(&Params::balanced());
        let most = lane_steps(&ablations[0].params);
        assert!(ablations.iter().all(|variant| lane_steps(&variant.params) <= most), "no variant has more work");
        let keys: std::collections::BTreeSet<String> = ablations.iter().map(Variant::key).collect();
        assert_eq!(keys.len(), ablations.len(), "no two of them are the same");
    }

    #[test]
    fn the_profiles_spend_no_more_than_they_say() {
        let paper = lane_steps(&Params::paper());
        assert_eq!(paper, 28_800);
        for (params, most) in [(Params::best(), paper), (Params::balanced(), paper / 4), (Params::fast(), 2_900)] {
            assert!(lane_steps(&params) <= most, "{}: {} of {most}", params.profile, lane_steps(&params));
        }
    }
}
