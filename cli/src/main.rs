//! `basin`: the person's command.

/// A line for the person. Nobody need read it: a closed pipe is no error.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// A line beside the results, on standard error.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod asked;
mod capacity;
mod edit;
mod fleet;
mod local;
mod models;
mod plan;
mod project;
mod report;
mod serve_edits;
mod study;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use proto::Params;

/// Projects image data sets into class-conditional GANs.
///
/// The method of Huh et al., "Transforming and Projecting Images into Class-conditional Generative Networks" (ECCV 2020): for each
/// image it finds a transform, a latent vector and a class vector whose generated image is closest to the object in it.
#[derive(Parser)]
#[command(name = "basin", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Project the images of a data set.
    ///
    /// Run it again to go on where it stopped: finished images are left alone, unfinished ones resume. Ctrl-C once finishes the step,
    /// saves and leaves; twice leaves at once. Exit code: 0 all images have results; 2 some failed, see the list; 1 it could not run;
    /// 130 interrupted.
    Project(Box<project::Args>),
    /// Write the tables and the report of a run again.
    Report(report::Args),
    /// Change a projected image: another class, a shift, a zoom, blended back into it.
    Edit(Box<edit::Args>),
    /// Serve edits over HTTP, for the dashboard and for other programs.
    ServeEdits(serve_edits::Args),
    /// Hand a run to a fleet.
    Submit(fleet::Submit),
    /// Show and steer the runs of a fleet.
    Runs(fleet::Runs),
    /// Watch a fleet, or a run, in the terminal.
    ///
    /// Exit code: 0 when you leave, 130 on Ctrl-C; without a terminal as `basin runs wait`'s: 2 if images failed.
    Watch(watch::Args),
    /// Project images of a finished run again: failures as they are, or images that conditions select with another seed.
    Redrive(fleet::Redrive),
    /// Show the workers of a fleet.
    Workers(fleet::Coordinator),
    /// Copy a model folder to a fleet's home.
    Push(fleet::Push),
    /// Copy a run, or anything else, from one store to another.
    Copy(fleet::Copy),
    /// Write the results of a run as shards that training programs read.
    ///
    /// A WebDataset: tar files, and manifest.json with size and SHA-256 of everything. The same run gives the same bytes.
    Export(fleet::Export),
    /// Prove that a run is complete: every image has one result or one failure, and every object is whole.
    ///
    /// Exit code: 0 it is; 2 it is not, see the list.
    Verify(fleet::Verify),
    /// Measure the coordinator's work for a run of any size, with simulated workers.
    Simulate(fleet::Simulate),
    /// Check that a store does what a fleet needs: permissions, listing, and that of all who create a key one wins.
    ///
    /// Exit code: 0 it does; 2 it does not, see the list.
    Doctor(fleet::Doctor),
    /// Tell how long a run takes, what it costs and how many workers finish it by a deadline, from what was measured.
    Plan(Box<plan::Args>),
    /// Repeat the paper's experiments on a data set: all rows of a table as runs, and the table.
    ///
    /// Run it again to go on: finished rows are left alone, an unfinished one resumes. Exit code: as of `project`.
    Study(Box<study::Args>),
    /// Fetch, convert, check and calibrate models.
    Models(models::Args),
    /// Print the parameters of a profile as JSON, to be changed and given to `project --params`.
    Params {
        /// Name of the profile.
        #[arg(value_parser = Params::PROFILES, default_value = "paper")]
        profile: String,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages.
    Man {
        /// Folder to write to.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let _telemetry = telemetry::init("basin", "warn");
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The whole chain, once.
            note!("basin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Project(args) => runtime()?.block_on(project::run(*args)),
        Command::Report(args) => runtime()?.block_on(report::run(args)),
        Command::Edit(args) => runtime()?.block_on(edit::run(*args)),
        Command::ServeEdits(args) => runtime()?.block_on(serve_edits::run(args)),
        Command::Submit(args) => fleet::submit(args),
        Command::Runs(args) => fleet::runs(args),
        Command::Watch(args) => watch::run(args),
        Command::Redrive(args) => fleet::redrive(args),
        Command::Workers(args) => fleet::workers(&args),
        Command::Push(args) => runtime()?.block_on(fleet::push(args)),
        Command::Copy(args) => runtime()?.block_on(fleet::copy(args)),
        Command::Export(args) => runtime()?.block_on(fleet::export(args)),
        Command::Verify(args) => runtime()?.block_on(fleet::verify(args)),
        Command::Simulate(args) => fleet::simulate(&args),
        Command::Doctor(args) => runtime()?.block_on(fleet::doctor(args)),
        Command::Study(args) => runtime()?.block_on(study::run(*args)),
        Command::Models(args) => models::run(args),
        Command::Plan(args) => runtime()?.block_on(plan::run(*args)),
        Command::Params { profile } => {
            let params = Params::profile(&profile).expect("clap allows known names only");
            say!("{}", serde_json::to_string_pretty(&params).expect("plain structs serialise"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "basin", &mut text);
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &text);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            clap_mangen::generate_to(Args::command(), &dir)
                .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start the I/O threads")
}
