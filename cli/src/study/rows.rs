//! The rows of the paper's tables as parameters. Pure.
//!
//! All rows of a study have the same budget of generator evaluations for each seed in stage two. The paper's is 1,200: 30 x 30 + 300.

use proto::{
    ClassSource, ClassStart, ColourTransform, LastDescent, LatentSearch, LatentStart, MaskSource, Params, SpatialTransform, Told,
    TransformSearch,
};

/// Seeds below which CMA-ES has no population.
const FEWEST: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Generator evaluations of each seed in stage two, at least 8.
    pub evaluations: u32,
    /// Lanes of an image, and population of CMA-ES.
    pub seeds: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StudyRow {
    pub slug: &'static str,
    pub name: &'static str,
    pub params: Params,
    pub paper: PaperNumbers,
    /// Slug of the row that it is compared with.
    pub against: Option<&'static str>,
    /// A difference to the paper's rows.
    pub note: Option<String>,
}

/// The paper's average and best of 18 seeds, each as L1, L2, LPIPS of AlexNet and of VGG. The paper has other images and another
/// generator.
pub type PaperNumbers = [Option<[f64; 4]>; 2];

/// The start and the transforms of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct With {
    spatial: bool,
    colour: bool,
    encoder: bool,
}

const NONE: With = With { spatial: false, colour: false, encoder: false };
const SPATIAL: With = With { spatial: true, ..NONE };
const COLOUR: With = With { colour: true, ..NONE };
const ENCODER: With = With { encoder: true, ..NONE };
const TRANSFORM: With = With { spatial: true, colour: true, encoder: false };
const ALL: With = With { spatial: true, colour: true, encoder: true };

impl Budget {
    fn adam(self) -> LatentSearch {
        LatentSearch::Adam { steps: self.evaluations }
    }

    /// The authors' 200 and 300, in proportion.
    fn cma_adam(self) -> LatentSearch {
        let generations = (f64::from(self.evaluations) * 0.4).round() as u32;
        LatentSearch::CmaAdam { generations, steps: self.evaluations - generations }
    }

    /// As many generations as steps of each, and the rest in the last descent: the paper's 30, 30 and 300 of 1,200.
    fn basin_cma(self, last: LastDescent) -> LatentSearch {
        let mut side = square_of(self.evaluations);
        // At least three are left, one for each part of a last descent that halves.
        while side * side + 3 > self.evaluations {
            side -= 1;
        }
        let final_steps = self.evaluations - side * side;
        LatentSearch::BasinCma { generations: side, steps: side, final_steps, told: Told::Refined, sigma: 1.0, last }
    }

    /// Half the seeds, and as many lane-steps in all.
    fn with_fewer_seeds(self) -> Budget {
        let seeds = (self.seeds / 2).max(FEWEST);
        let evaluations = u64::from(self.evaluations) * u64::from(self.seeds) / u64::from(seeds);
        Budget { evaluations: evaluations as u32, seeds }
    }

    fn params(self, latent: LatentSearch, with: With) -> Params {
        let paper = Params::paper();
        let side = square_of(self.evaluations);
        let transform = paper.transform.map(|search| TransformSearch {
            spatial: if with.spatial { search.spatial } else { SpatialTransform::None },
            colour: if with.colour { vec![ColourTransform::Brightness] } else { vec![] },
            generations: side,
            steps: side,
            ..search
        });
        Params {
            profile: "study".into(),
            transform: transform.filter(|_| with.spatial || with.colour),
            latent,
            seeds: self.seeds,
            start: if with.encoder { LatentStart::ENCODER } else { LatentStart::Random },
            ..Params::paper()
        }
    }
}

/// Side of the square of three quarters of the evaluations, as 30 x 30 of 1,200; stage one is scaled in the same way.
fn square_of(evaluations: u32) -> u32 {
    (f64::from(evaluations) * 0.75).sqrt().round() as u32
}

/// Evaluations of each candidate in stage one, and how many candidates a generation has.
pub fn stage_one(params: &Params) -> Option<(u64, u64)> {
    let search = params.transform.as_ref()?;
    let each = u64::from(search.generations) * u64::from(search.steps);
    Some((each, (engine::lane_steps(params) - stage_two(params)) / each))
}

pub fn stage_two(params: &Params) -> u64 {
    engine::lane_steps(&Params { transform: None, ..params.clone() })
}

/// Table 1 in the paper's order; then free batches as in the authors' second code, and two own proposals.
pub fn table1(budget: Budget) -> Vec<StudyRow> {
    let (adam, cma_adam, basin) = (budget.adam(), budget.cma_adam(), budget.basin_cma(LastDescent::Fresh));
    let lbfgs = LatentSearch::Lbfgs { evaluations: budget.evaluations };
    let cma = LatentSearch::Cma { generations: budget.evaluations };
    let rows = [
        ("adam", "Adam", &adam, NONE, [0.98, 0.62, 0.41, 0.58], [0.83, 0.47, 0.33, 0.51], None),
        ("lbfgs", "L-BFGS", &lbfgs, NONE, [1.04, 0.68, 0.45, 0.61], [0.85, 0.49, 0.35, 0.53], Some("adam")),
        ("cma", "CMA", &cma, NONE, [0.96, 0.61, 0.39, 0.55], [0.91, 0.54, 0.37, 0.54], Some("adam")),
        ("encoder", "None", &LatentSearch::Start, ENCODER, [1.61, 1.39, 0.62, 0.68], [1.35, 1.00, 0.55, 0.64], Some("adam")),
        ("adam-encoder", "Adam", &adam, ENCODER, [0.96, 0.60, 0.39, 0.56], [0.82, 0.46, 0.32, 0.51], Some("adam")),
        ("adam-colour", "Adam", &adam, COLOUR, [0.98, 0.62, 0.42, 0.58], [0.83, 0.47, 0.33, 0.51], Some("adam")),
        ("adam-spatial", "Adam", &adam, SPATIAL, [0.90, 0.54, 0.44, 0.57], [0.76, 0.41, 0.36, 0.50], Some("adam")),
        ("adam-all", "Adam", &adam, ALL, [0.88, 0.52, 0.42, 0.55], [0.76, 0.40, 0.36, 0.49], Some("adam")),
        ("cma-adam", "CMA+Adam", &cma_adam, NONE, [0.93, 0.57, 0.37, 0.55], [0.83, 0.47, 0.32, 0.51], Some("adam")),
        ("basincma", "BasinCMA", &basin, NONE, [0.82, 0.48, 0.29, 0.51], [0.78, 0.43, 0.26, 0.49], Some("cma-adam")),
        ("basincma-encoder", "BasinCMA", &basin, ENCODER, [0.82, 0.47, 0.29, 0.50], [0.78, 0.43, 0.26, 0.49], Some("basincma")),
        ("basincma-colour", "BasinCMA", &basin, COLOUR, [0.81, 0.46, 0.29, 0.50], [0.77, 0.42, 0.25, 0.49], Some("basincma")),
        ("basincma-spatial", "BasinCMA", &basin, SPATIAL, [0.72, 0.38, 0.33, 0.48], [0.69, 0.35, 0.31, 0.46], Some("basincma")),
        ("basincma-all", "BasinCMA", &basin, ALL, [0.71, 0.37, 0.32, 0.47], [0.68, 0.34, 0.31, 0.46], Some("basincma")),
    ];
    let rows = rows.map(|(slug, name, latent, with, average, best, against)| {
        let (params, paper) = (budget.params(latent.clone(), with), [Some(average), Some(best)]);
        StudyRow { slug, name, params, paper, against, note: None }
    });
    rows.into_iter().chain(other_methods(budget)).collect()
}

/// Free batches, with half the seeds and as many lane-steps in all; then BasinCMA with other last descents.
fn other_methods(budget: Budget) -> [StudyRow; 4] {
    let (Budget { evaluations, seeds }, fewer) = (budget, budget.with_fewer_seeds());
    let free = format!("{} seeds of {} evaluations instead of {seeds} of {evaluations}", fewer.seeds, fewer.evaluations);
    let (half, survivors) = (seeds.div_ceil(2), seeds.div_ceil(2).div_ceil(2));
    let refined = "the last descent begins with the best points of all generations, not with fresh samples".to_owned();
    let halving = format!(
        "{seeds}, {half} and {survivors} seeds take a third of the last descent's lane-steps each; the average is over the \
        {survivors} survivors only"
    );
    let basin = |budget: Budget, last| budget.params(budget.basin_cma(last), NONE);
    let rows = [
        ("cma-adam-free", "CMA+Adam, free batch", fewer.params(fewer.cma_adam(), NONE), "cma-adam", free.clone()),
        ("basincma-free", "hybrid (BasinCMA), free batch", basin(fewer, LastDescent::Fresh), "basincma", free),
        (
            "basincma-refined",
            "ours: BasinCMA, last descent from the best refined points",
            basin(budget, LastDescent::Refined),
            "basincma",
            refined,
        ),
        (
            "basincma-halving",
            "ours: BasinCMA, halving in the last descent",
            basin(budget, LastDescent::Halving),
            "basincma",
            halving,
        ),
    ];
    rows.map(|(slug, name, params, against, note)| {
        let (against, note) = (Some(against), Some(note));
        StudyRow { slug, name, params, paper: [None; 2], against, note }
    })
}

/// Table 2: where the class vector starts, with Adam.
pub fn table2(budget: Budget) -> Vec<StudyRow> {
    let adam = || budget.params(budget.adam(), NONE);
    let mut predicted = adam();
    predicted.object.class = ClassSource::Classifier;
    let starts = |class_start| Params { class_start, ..adam() };
    let rows = [
        ("class-gaussian", "Random Gaussian", starts(ClassStart::Gaussian), [1.26, 0.88, 0.69, 0.86], Some("adam")),
        ("class-random", "Random class", starts(ClassStart::RandomClass), [0.88, 0.51, 0.40, 0.59], Some("adam")),
        ("class-predicted", "Predicted", predicted, [0.84, 0.47, 0.33, 0.52], Some("adam")),
        ("adam", "Ground truth", adam(), [0.83, 0.47, 0.33, 0.51], None),
    ];
    let row = |(slug, name, params, best, against)| {
        let paper = [None, Some(best)];
        StudyRow { slug, name, params, paper, against, note: None }
    };
    rows.map(row).into()
}

/// Table 3: images that the generator was not trained on. The class is predicted, the mask detected if the model `detects`.
pub fn table3(budget: Budget, detects: bool) -> Vec<StudyRow> {
    let (adam, basin) = (budget.adam(), budget.basin_cma(LastDescent::Fresh));
    let rows = [
        ("ood-adam", "Adam", &adam, NONE, Some([0.96, 0.57, 0.32, 0.56]), None),
        ("ood-adam-transform", "Adam", &adam, TRANSFORM, Some([0.81, 0.45, 0.39, 0.52]), Some("ood-adam")),
        // The paper's row is garbled in the copy at hand.
        ("ood-basincma", "BasinCMA", &basin, NONE, None, Some("ood-adam")),
        ("ood-basincma-transform", "BasinCMA", &basin, TRANSFORM, Some([0.78, 0.42, 0.36, 0.49]), Some("ood-basincma")),
    ];
    let row = |(slug, name, latent, with, best, against): (_, _, &LatentSearch, _, _, _)| {
        let mut params = budget.params(latent.clone(), with);
        params.object.class = ClassSource::Classifier;
        if detects {
            params.object.mask = MaskSource::DetectorBox;
        }
        StudyRow { slug, name, params, paper: [None, best], against, note: None }
    };
    rows.map(row).into()
}

/// Figure 9: CMA+Adam with the transform.
pub fn per_class(budget: Budget) -> Vec<StudyRow> {
    let (slug, name, params) = ("cma-adam-transform", "CMA+Adam", budget.params(budget.cma_adam(), TRANSFORM));
    vec![StudyRow { slug, name, params, paper: [None; 2], against: None, note: None }]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAPER: Budget = Budget { evaluations: 1200, seeds: 18 };

    fn all(budget: Budget) -> Vec<StudyRow> {
        [table1(budget), table2(budget), table3(budget, false), per_class(budget)].concat()
    }

    #[test]
    fn at_the_papers_budget_the_rows_are_the_papers() {
        let full = table1(PAPER).into_iter().find(|row| row.slug == "basincma-all").expect("listed").params;
        assert_eq!(full, Params { profile: "study".into(), start: LatentStart::ENCODER, ..Params::paper() });
        assert_eq!(stage_one(&full), Some((900, 8)));
        assert_eq!(PAPER.cma_adam(), LatentSearch::CmaAdam { generations: 480, steps: 720 });
    }

    #[test]
    fn every_row_is_valid_and_spends_its_budget() {
        for evaluations in (8..400).chain([1200, 5000]) {
            for seeds in [3, 4, 18] {
                let budget = Budget { evaluations, seeds };
                let allowed = u64::from(evaluations) * u64::from(seeds);
                for row in all(budget) {
                    assert_eq!(Params::from_json(&row.params.to_json()).expect(row.slug), row.params, "{}", row.slug);
                    let spent = stage_two(&row.params);
                    // Division leaves less than one evaluation of each seed.
                    let exact = row.slug == "encoder" || (spent <= allowed && allowed - spent < u64::from(seeds));
                    assert!(exact, "{} spends {spent} of {allowed}", row.slug);
                }
            }
        }
    }

    #[test]
    fn names_of_runs_are_names_and_rows_are_compared_with_rows() {
        for rows in [table1(PAPER), table2(PAPER), table3(PAPER, true)] {
            let slugs: BTreeSet<&str> = rows.iter().map(|row| row.slug).collect();
            assert_eq!(slugs.len(), rows.len());
            for row in &rows {
                assert!(proto::keys::check_run(row.slug).is_ok());
                assert!(row.against.is_none_or(|other| slugs.contains(other)), "{}", row.slug);
            }
        }
    }

    #[test]
    fn the_row_that_two_tables_share_is_one_run() {
        let adam = |rows: Vec<StudyRow>| rows.into_iter().find(|row| row.slug == "adam").expect("listed").params;
        assert_eq!(adam(table1(PAPER)), adam(table2(PAPER)));
    }
}
