//! `basin edit`: a projected image with another class, shift or zoom, blended back into the original.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use engine::LoadedModel;
use engine::edit::{EditRequest, Projected, directions};
use engine::editor::View;
use engine::film::{self, Frame};
use store::Store;

/// Milliseconds that a film shows each frame.
const MILLIS: u32 = 80;
const STEPS: usize = 7;

#[derive(clap::Args)]
pub struct EditArgs {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    run: String,
    /// Key of the image in the data set, as in the report and the tables.
    image: String,
    /// Folder of the model that the run used.
    #[arg(long, env = "BASIN_MODEL")]
    model: PathBuf,
    /// Change the class; `all`: every class. Can be repeated: the sheet has a row for each class. Default: the class stays.
    #[arg(long, value_name = "NAME")]
    class: Vec<String>,
    /// How far to move towards the class: 0 not at all, 1 all the way, more exaggerates.
    #[arg(long, value_name = "PART", default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// Shift the object to the right; a negative amount shifts it to the left.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    shift: Option<f64>,
    /// Zoom in; a negative amount zooms out.
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    zoom: Option<f64>,
    /// Move along a direction of the latent space, such as `pc1=2`. `--list` prints the directions.
    #[arg(long = "move", value_name = "NAME=AMOUNT", value_parser = parse_move)]
    moves: Vec<(String, f64)>,
    /// Multiply z by this factor; below 1 the image becomes more typical of its class.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, allow_negative_numbers = true)]
    truncation: f64,
    /// Use the model's own weights, even if the run fine-tuned them to the image.
    #[arg(long)]
    untuned: bool,
    /// Which picture to write: `blended` into the original image, `inverted` (put back into the image's frame), or as `generated`.
    #[arg(long, value_parser = ["blended", "inverted", "generated"], default_value = "blended")]
    view: String,
    /// Write N pictures on the way from no edit to the whole edit. Default: only the whole edit, or 7 pictures for a film.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "7", value_parser = clap::value_parser!(u16).range(2..=240))]
    sweep: Option<u16>,
    /// File to write: .png for a sheet of all pictures; .webp, .gif or .mp4 for a film of the sweep. Can be repeated.
    #[arg(long, value_name = "FILE", default_value = "edit.png")]
    out: Vec<PathBuf>,
    /// Print the model's classes and directions, and edit nothing.
    #[arg(long)]
    list: bool,
}

fn parse_move(text: &str) -> Result<(String, f64), String> {
    let (name, far) = text.split_once('=').ok_or("expected NAME=AMOUNT, such as pc1=2")?;
    Ok((name.to_owned(), far.parse().map_err(|_| format!("{far:?} is not a number"))?))
}

pub async fn run(args: EditArgs) -> anyhow::Result<ExitCode> {
    let formats: Vec<Option<film::Format>> = args.out.iter().map(|path| film_format(path)).collect::<anyhow::Result<_>>()?;
    let dir = args.model.clone();
    let model = tokio::task::spawn_blocking(move || engine::load(&dir)).await?.context("cannot load the model")?;
    let directions = directions(&model);
    if args.list {
        say!("classes: {}", model.manifest.classes.join(", "));
        say!("directions: {}", directions.keys().cloned().collect::<Vec<_>>().join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    let results = Store::open(&args.run).await.context("cannot open the run")?;
    let projected = Projected::read(&results, &args.image, &model).await?;
    let tuned = projected.tuned.is_some() && !args.untuned;
    note!("{} as {}, {}", args.image, projected.record.class_name, if tuned { "fine-tuned" } else { "not fine-tuned" });

    let requests = args.requests(&model)?;
    let films = formats.iter().any(Option::is_some);
    let steps = args.sweep.map(usize::from).or(films.then_some(STEPS)).unwrap_or(1);
    let view = View::named(&args.view).expect("clap allows known names only");
    let r = model.reference.resolution;
    let mut rows = Vec::new();
    for (label, request) in &requests {
        let mut frames = Vec::new();
        for step in 0..steps {
            let part = if steps == 1 { 1.0 } else { step as f64 / (steps - 1) as f64 };
            let edited = projected.edit(&model, &directions, &partly(request, part))?;
            frames.push(film::frame(&view.of(edited), r));
        }
        rows.push((label.clone(), frames));
    }
    let target = film::frame(&projected.stored.target, r);
    let none = EditRequest { fine_tuned: !args.untuned, ..EditRequest::default() };
    let projection = film::frame(&projected.edit(&model, &directions, &none)?.inverted, r);
    for (path, format) in args.out.iter().zip(formats) {
        match format {
            None => sheet(path, &target, &projection, &rows, steps)?,
            Some(format) => {
                // Forwards and backwards, one edit after the other.
                let frames: Vec<Frame> =
                    rows.iter().flat_map(|(_, frames)| frames.iter().chain(frames.iter().rev()).cloned()).collect();
                let bytes = film::encode(format, &frames, MILLIS)?;
                std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        say!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The format of a film; `None` for a sheet.
fn film_format(path: &Path) -> anyhow::Result<Option<film::Format>> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Ok(None);
    }
    film::Format::of(path).map(Some).context("--out must name a sheet (.png) or a film")
}

impl EditArgs {
    /// A request for each class, with its label; without a class, one request for the moves alone.
    fn requests(&self, model: &LoadedModel) -> anyhow::Result<Vec<(String, EditRequest)>> {
        let named = [("shift_x", self.shift), ("zoom", self.zoom)];
        let named = named.into_iter().filter_map(|(name, far)| Some((name.to_owned(), far?)));
        let mut moves = BTreeMap::new();
        for (name, far) in named.chain(self.moves.iter().cloned()) {
            if moves.insert(name.clone(), far).is_some() {
                bail!("direction {name} is given twice: give it once");
            }
        }
        let classes = match self.class.as_slice() {
            [all] if all == "all" && !model.manifest.classes.contains(all) => model.manifest.classes.clone(),
            classes => classes.to_vec(),
        };
        if classes.is_empty() && moves.is_empty() && self.truncation == 1.0 {
            bail!(
                "nothing to change: give --class NAME, --shift, --zoom, --move or --truncation (--list prints classes and directions)"
            );
        }
        let request =
            EditRequest { class: None, strength: self.strength, moves, truncation: self.truncation, fine_tuned: !self.untuned };
        if classes.is_empty() {
            let moves = request.moves.iter().map(|(name, far)| format!("{name} {far}"));
            let truncation = (self.truncation != 1.0).then(|| format!("truncation {}", self.truncation));
            return Ok(vec![(moves.chain(truncation).collect::<Vec<_>>().join(", "), request)]);
        }
        Ok(classes.into_iter().map(|class| (class.clone(), EditRequest { class: Some(class), ..request.clone() })).collect())
    }
}

/// A part of an edit: 0 is no edit, 1 the whole.
fn partly(request: &EditRequest, part: f64) -> EditRequest {
    EditRequest {
        strength: request.strength * part,
        moves: request.moves.iter().map(|(name, far)| (name.clone(), far * part)).collect(),
        truncation: 1.0 + (request.truncation - 1.0) * part,
        ..request.clone()
    }
}

fn sheet(path: &Path, target: &Frame, projection: &Frame, rows: &[(String, Vec<Frame>)], steps: usize) -> anyhow::Result<()> {
    let mut columns = vec!["image".to_owned(), "projection".to_owned()];
    columns.extend((0..steps).map(|step| match steps {
        1 => "edited".to_owned(),
        _ => format!("{:.0} %", 100.0 * step as f64 / (steps - 1) as f64),
    }));
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows: Vec<(&str, Vec<Frame>)> = rows
        .iter()
        .map(|(label, frames)| {
            let all = [target, projection].into_iter().chain(frames).cloned().collect();
            (label.as_str(), all)
        })
        .collect();
    film::contact_sheet(&columns, &rows).save(path).with_context(|| format!("cannot write {}", path.display()))
}
