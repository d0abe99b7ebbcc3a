//! Trains the bundled model: a small class-conditional BigGAN-deep and its classifier, on Fashion-MNIST.
//!
//! `make models` runs the steps one after the other. Training writes its state under `--work` and resumes from there.

mod classifier;
mod data;
mod directions;
mod discriminator;
#[cfg(test)]
mod drawn;
mod encoder;
mod export;
mod folder;
mod gan;
mod generator;
mod judge;
mod samples;
mod vars;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tch::kind::{FLOAT_CPU, INT64_CPU};
use tch::{Kind, Tensor, no_grad};

use crate::classifier::{MODEL, TrainableClassifier};
use crate::data::{CLASSES, Split};
use crate::generator::fashion32;

#[derive(Parser)]
#[command(version, about = "Train the bundled model and its parts")]
struct Args {
    /// Folder of Fashion-MNIST's IDX files.
    #[arg(long, default_value = "/usr/share/datasets/fashion-mnist")]
    data: PathBuf,
    /// Folder of the training states.
    #[arg(long, default_value = "target/training")]
    work: PathBuf,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the classifier.
    Classifier {
        /// Epochs with shifted images.
        #[arg(long, default_value_t = 12)]
        epochs: u32,
        /// Further epochs without shifts.
        #[arg(long, default_value_t = 6)]
        polish: u32,
    },
    /// Train the generator.
    Gan {
        /// Generator steps in all.
        #[arg(long, default_value_t = 3800)]
        steps: u64,
    },
    /// Write the model folder and measure the model.
    Export {
        /// Output folder.
        #[arg(long, default_value = "models/fashion32")]
        out: PathBuf,
    },
    /// Learn directions of z that shift and zoom, and put them into a model folder.
    Directions {
        /// Model folder.
        #[arg(long, default_value = "models/fashion32")]
        model: PathBuf,
        /// Gradient steps.
        #[arg(long, default_value_t = 1000)]
        steps: u64,
    },
    /// Train an encoder, which predicts z from an image and its class, and put it into a model folder.
    Encoder {
        /// Model folder.
        #[arg(long, default_value = "models/fashion32")]
        model: PathBuf,
        /// Minutes of training in all; a second start resumes.
        #[arg(long, default_value_t = 25.0)]
        minutes: f64,
    },
    /// Train a second perceptual network, which judges results of the first one.
    Judge {
        /// Output folder.
        #[arg(long, default_value = "models/fashion32-vgg")]
        out: PathBuf,
        /// Epochs with shifted images.
        #[arg(long, default_value_t = 2)]
        epochs: u32,
        /// Further epochs without shifts.
        #[arg(long, default_value_t = 1)]
        polish: u32,
    },
    /// Write the sample data set, or one of other images.
    Samples {
        /// Output folder.
        #[arg(long, default_value = "samples")]
        out: PathBuf,
        #[command(flatten)]
        choice: samples::Choice,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    tch::set_num_threads(args.threads);
    std::fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let classifier_path = args.work.join("classifier.safetensors");
    match args.command {
        Command::Classifier { epochs, polish } => {
            tch::manual_seed(args.seed as i64);
            let mut net = TrainableClassifier::new(MODEL);
            let (train, test) = (Split::train(&args.data)?, Split::test(&args.data)?);
            let data = (&train, &test);
            let half_way = args.work.join("classifier-train.safetensors");
            if half_way.exists() {
                net.vars.load(&half_way)?;
            } else {
                net.train(data, epochs, args.seed)?;
                net.vars.save(&half_way)?;
            }
            let accuracy = net.polish(data, polish, args.seed)?;
            net.vars.save(&classifier_path)?;
            println!("classifier: test accuracy {accuracy:.4}");
        }
        Command::Gan { steps } => {
            let net = read_classifier(&classifier_path)?;
            let data = Split::train(&args.data)?;
            let config = fashion32();
            let real = class_variance(&test_images(&data), 200);
            gan::train(&config, &data, steps, args.seed, &args.work.join("gan.safetensors"), |average| {
                let (_vars, generator) = gan::averaged_generator(&config, average).expect("same shapes");
                let labels = Tensor::arange(10, INT64_CPU).repeat_interleave_self_int(50, 0, None);
                let z = Tensor::randn([500, config.z_dim], FLOAT_CPU).fmod(2.0);
                let images = no_grad(|| generator.forward(&z, &labels).0);
                let hit = no_grad(|| net.forward(&images, false)).argmax(-1, false).eq_tensor(&labels);
                let hit = hit.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
                println!("  intended class {hit:.3}, variance {:.3} of the real", class_variance(&images, 50) / real);
            })?;
        }
        Command::Export { out } => {
            tch::manual_seed(args.seed as i64);
            let net = read_classifier(&classifier_path)?;
            let (average, steps) = gan::read_average(&args.work.join("gan.safetensors"))?;
            let (train, test) = (Split::train(&args.data)?, Split::test(&args.data)?);
            let how = format!("{} Generator steps: {steps}. Seed {}. `make models` repeats it.", gan::HOW, args.seed);
            let measured = export::export(&fashion32(), &average, &net, (&train, &test), &out, &how)?;
            println!("{}", serde_json::to_string_pretty(&measured)?);
        }
        Command::Directions { model, steps } => directions::run(&model, (steps, directions::MEASURED), args.seed)?,
        Command::Encoder { model, minutes } => encoder::run(&model, (minutes, encoder::MEASURED), &args.work, args.seed)?,
        Command::Judge { out, epochs, polish } => judge::run(&args.data, &out, (epochs, polish), args.seed)?,
        Command::Samples { out, choice } => samples::write(&Split::test(&args.data)?, &out, choice, args.seed)?,
    }
    Ok(())
}

fn read_classifier(path: &Path) -> Result<TrainableClassifier> {
    let mut net = TrainableClassifier::new(MODEL);
    net.vars.load(path).context("no classifier; run `trainer classifier` first")?;
    Ok(net)
}

/// Real images, 200 of each class, in class order.
fn test_images(data: &Split) -> Tensor {
    let index: Vec<i64> = data.by_class().iter().flat_map(|c| c[..200].to_vec()).collect();
    data.batch(&Tensor::from_slice(&index)).0
}

/// Mean over classes and pixels of the variance within a class; images `[classes * per_class, 3, h, w]` in class order.
fn class_variance(images: &Tensor, per_class: i64) -> f64 {
    let grouped = images.reshape([CLASSES.len() as i64, per_class, -1]);
    grouped.var_dim(&[1i64][..], true, false).mean(Kind::Float).double_value(&[])
}
