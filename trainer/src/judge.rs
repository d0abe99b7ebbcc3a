//! A second perceptual network, which judges results of the model's own one: another architecture, trained from another seed on the same
//! images. Only its feature maps are kept.

use std::path::Path;

use anyhow::{Context, Result};

use crate::classifier::{JUDGE, TrainableClassifier};
use crate::data::Split;
use crate::export::write_perceptual;

/// Added to the seed, so that the judge shares no random number with the model's classifier.
const OTHER_SEED: u64 = 1000;

pub fn run(data: &Path, out: &Path, (epochs, polish): (u32, u32), seed: u64) -> Result<()> {
    let seed = seed + OTHER_SEED;
    tch::manual_seed(seed as i64);
    let mut net = TrainableClassifier::new(JUDGE);
    let (train, test) = (Split::train(data)?, Split::test(data)?);
    net.train((&train, &test), epochs, seed)?;
    let accuracy = net.polish((&train, &test), polish, seed)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    write_perceptual(&net, [], out)?;
    let path = out.join("README.md");
    std::fs::write(&path, card(out, accuracy, (epochs, polish), seed)).with_context(|| format!("cannot write {}", path.display()))
}

fn card(out: &Path, accuracy: f64, (epochs, polish): (u32, u32), seed: u64) -> String {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let channels: Vec<String> =
        JUDGE.iter().map(|conv| format!("{}{}", conv.channels, if conv.pool { ", pooling" } else { "" })).collect();
    format!(
        "# {name}\n\n\
        A perceptual network for 32 x 32 pixels that `fashion32` was not made with: it judges results that the model's own network\n\
        led to, as VGG does beside AlexNet in the paper's tables (`basin study ... --judge vgg={name}`).\n\n\
        3x3 convolutions with {} channels; LPIPS compares the second of each pair. Trained as a\n\
        classifier of the 60,000 training images of Fashion-MNIST (MIT licence, Zalando), as the model's was, but with another\n\
        architecture and from seed {seed}: {epochs} epochs with shifted images, {polish} without. Only the feature maps are kept.\n\n\
        | | |\n|---|---|\n\
        | accuracy on the 10,000 real test images | {:.2} % |\n\n\
        Every channel has weight 0.1 in LPIPS: no human judgements exist for it. `trainer judge` repeats it.\n",
        channels.join(", "),
        100.0 * accuracy,
    )
}
